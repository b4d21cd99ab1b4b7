"""A whole output as the one layer: against reuse by hand, on our backbones and in the policies."""

from __future__ import annotations

import itertools

import pytest
import torch

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.backbones.whole_output import WholeOutput
from l2c.calibration.changes import measure_changes
from l2c.calibration.cost import count_macs
from l2c.calibration.measurements import Measurements
from l2c.calibration.responses import measure_responses
from l2c.diffusion import Guidance
from l2c.policies.best import _with_whole_output
from l2c.policies.budget import BudgetOutOfReach
from l2c.policies.calibration import Calibration
from l2c.policies.context import PolicyContext
from l2c.policies.methods.random_layers import random_layers
from l2c.policies.registry import POLICIES, make_graph
from l2c.policies.true_error import TrueError
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import seeded_noise
from l2c.training.corrections.run import train_correction, uncached_sampler
from l2c.training.corrections.settings import CorrectionSettings

STEPS = 6
ROWS = ((True,), (True,), (True,), (False,), (False,), (True,))
WEIGHTS = (0.5, 0.75, -0.25)  # of the last three computed outputs
LABELS = torch.tensor([0, 3])
SCALE = {"dit": 3.0, "uvit": 0.7}
NEEDS_BLOCKS = ("deepcache", "faster_diffusion", "pab")


def sampler_of(backbone, graph=None, **settings):
    where = {} if graph is not None else {"solver": "ddim", "num_evaluations": STEPS}
    return l2c.Sampler(backbone, graph=graph, cfg_scale=SCALE[backbone.conventions.guidance], **where, **settings)


def whole_graph(backbone, reuse):
    sampler = sampler_of(WholeOutput(backbone))
    weights = [(), (), (), (WEIGHTS,), (WEIGHTS,), ()] if reuse == "weighted" else None
    blank = PolicyContext.of(sampler).blank
    return blank.replace(rows=ROWS, routed=(3, 4), reuse=(reuse,) * STEPS, weights=weights)


def by_hand(backbone, noise, reuse):
    """Return images of a trajectory whose outputs are replaced where ROWS says so."""
    sampler = sampler_of(backbone)
    network = GuidedBackbone(backbone, LABELS, Guidance(backbone.conventions.guidance, sampler.guidance.scale))
    past, calls = [], iter(range(STEPS))

    def answer(x, t):
        e = next(calls)
        if ROWS[e][0]:
            past.insert(0, network.full(x, t)[0])
            return past[0]
        if reuse == "weighted":
            return sum(w * output for w, output in zip(WEIGHTS, past, strict=False))
        return past[0]

    return sampler.solver.sample(answer, noise)


@pytest.mark.parametrize("reuse", ["hold", "weighted"])
def test_reused_outputs_are_those_replaced_by_hand(backbone, reuse):
    noise = seeded_noise(backbone.input_shape, 2, 2)
    with torch.no_grad():
        expected = by_hand(backbone, noise, reuse)
    images = sampler_of(backbone, whole_graph(backbone, reuse)).sample(LABELS, noise=noise)
    size = expected.abs().max()
    assert (images - expected).abs().max() < 1e-6 * size
    assert (images - sampler_of(backbone).sample(LABELS, noise=noise)).abs().max() > 1e-4 * size


def test_a_reused_evaluation_runs_no_block(backbone):
    ran = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    sampler_of(backbone, whole_graph(backbone, "hold")).sample(LABELS, seed=0)
    assert len(ran) == 4 * len(backbone.blocks)


def test_weights_and_macs_are_the_networks(backbone):
    whole = WholeOutput(backbone)
    x, t, y = torch.randn(1, *backbone.input_shape), torch.ones(1), torch.zeros(1, dtype=torch.long)
    assert torch.equal(whole(x, t, y), backbone(x, t, y))
    assert fingerprint(whole) == fingerprint(backbone)
    assert list(whole.state_dict()) == list(backbone.state_dict())
    assert count_macs(whole).evaluation == count_macs(backbone).evaluation
    graph = whole_graph(backbone, "hold")
    assert count_macs(whole).evaluations_worth(graph) == count_macs(backbone).evaluations_worth(graph) == 4


def test_precision_and_copies(make_dit):
    backbone = make_dit()
    graph = whole_graph(backbone, "hold")
    plain = sampler_of(backbone, graph).sample(LABELS, seed=0)
    half = sampler_of(backbone, graph, precision="bf16").sample(LABELS, seed=0)
    assert 0 < (half - plain).abs().max() < 0.3 * plain.std()
    kept = sampler_of(backbone, graph, cache_dtype="bf16").sample(LABELS, seed=0)
    assert 0 < (kept - plain).abs().max() < 0.1 * plain.std()


@pytest.fixture(scope="module")
def context(make_dit):
    sampler = sampler_of(WholeOutput(make_dit()))
    noise = seeded_noise(sampler.backbone.input_shape, 5, 2)
    tensors = measure_changes(sampler, LABELS, noise, max_age=3)
    tensors["responses"] = measure_responses(sampler, LABELS, noise, num_probes=2, max_age=3)
    return PolicyContext.of(sampler, Measurements(tensors, PolicyContext.of(sampler).blank.binding))


def test_changes_are_those_of_outputs(context):
    sampler, changes = context.sampler, context.calibration
    network = GuidedBackbone(sampler.backbone, LABELS, sampler.guidance)
    outputs = []

    def answer(x, t):
        outputs.append(sampler.backbone.network(*network.inputs(x, t), network.y))
        return network.merge(outputs[-1], t)

    with torch.no_grad():
        sampler.solver.sample(answer, seeded_noise(sampler.backbone.input_shape, 5, 2))
    expected = torch.stack(
        [
            ((now - old).abs().flatten(1).sum(1) / now.abs().flatten(1).sum(1)).mean()
            for old, now in itertools.pairwise(outputs)
        ]
    )
    assert torch.allclose(changes.tensor("layer_change")[0, 1:, 0].float(), expected, rtol=1e-4)
    assert torch.allclose(changes.tensor("block_change")[0, 1:, 0].float(), expected, rtol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_makes_a_graph_that_runs_or_says_why_not(policy, context):
    options = {"best": {"num_trajectories": 2, "pool": 2, "steps": 1, "batch_size": 2, "max_span": 2}}
    options["budcache"] = {"steps": 2, "climbs": 1}
    if policy in NEEDS_BLOCKS:
        with pytest.raises(ValueError, match=r"take (interval|part=all)"):
            make_graph(policy, context, budget=4)
        return
    graph = make_graph(policy, context, budget=4, **options.get(policy, {}))
    assert context.cost.evaluations_worth(graph) <= 4.5
    assert graph.layers == ("output",)
    assert sampler_of(context.sampler.backbone.network, graph).sample(LABELS, seed=1).isfinite().all()


def test_router_training_blends_whole_outputs(make_dit, make_batch):
    whole = WholeOutput(make_dit())
    x, t, y = make_batch(whole.network)
    _, cache = whole.forward_cached(x, t + 20, y, (True,))
    weight = torch.tensor([0.25], requires_grad=True)
    output, _ = whole.forward_cached(x, t, y, weight, cache)
    assert torch.allclose(output, 0.25 * whole(x, t, y) + 0.75 * cache[0], atol=1e-6)
    output.sum().backward()
    assert weight.grad.abs() > 0


def test_a_preset_and_a_graph_name_it(tmp_path, make_dit):
    assert l2c.load_backbone("dit_digits").num_layers == 16
    preset = {
        "name": "mine",
        "backbone": "dit",
        "args": {"input_size": 8, "depth": 1, "hidden_size": 32, "num_heads": 2},
    }
    whole = l2c.load_backbone({**preset, "layers": ["output"]}, checkpoint="random")
    assert whole.layer_names == ("output",)
    with pytest.raises(ValueError, match=r"layers of model mine must be \[output\] or null"):
        l2c.load_backbone({**preset, "layers": ["block"]}, checkpoint="random")
    graph = whole_graph(make_dit(), "weighted")
    graph.save(tmp_path / "graph.json")
    assert l2c.CacheGraph.load(tmp_path / "graph.json") == graph


def test_the_network_compiles_as_one(backbone):
    graph = whole_graph(backbone, "weighted")
    eager = sampler_of(backbone, graph).sample(LABELS, seed=0)
    sampler = sampler_of(backbone, graph).compile(2, backend="eager", progress=False)
    assert torch.allclose(sampler.sample(LABELS, seed=0), eager, atol=1e-5)
    assert sampler.compiled


def test_best_tries_whole_outputs_too(make_dit):
    sampler = sampler_of(make_dit())
    noise = seeded_noise(sampler.backbone.input_shape, 5, 2)
    tensors = {"responses": measure_responses(sampler, LABELS, noise, num_probes=2, max_age=3)}
    settings = {"num_trajectories": 2, "batch_size": 2, "responses": {"method": "gradient", "num_probes": 2}}
    binding = PolicyContext.of(sampler).blank.binding
    context = PolicyContext.of(sampler, Measurements(tensors, binding, settings))
    small = {"num_trajectories": 4, "pool": 4, "steps": 1, "batch_size": 2, "max_span": 3, "exchanges": 2}
    layers = make_graph("best", context, budget=2, whole_outputs=False, **small)
    output = make_graph("best", _with_whole_output(context), budget=2, **small)
    either = make_graph("best", context, budget=2, **small)
    judge = TrueError.of(sampler, 4, 7, pool=4)
    errors = {graph.layers: judge.error(graph) for graph in (layers, output)}
    own = sampler.backbone.layer_names
    assert set(errors) == {own, ("output",)}
    least = min(errors.values())
    assert judge.error(either) == pytest.approx(least, rel=1e-4) or either.layers == (*own, "output")
    assert judge.error(either) < least * (1 + 1e-4)
    assert either.provenance["hyperparameters"]["whole_outputs"]


def test_best_measures_no_responses_that_the_calibration_holds(make_dit, monkeypatch):
    sampler = sampler_of(make_dit())
    how = {"num_trajectories": 2, "batch_size": 2, "responses": {"num_probes": 2, "max_age": 3}}
    context = PolicyContext.of(sampler, Calibration.measure(sampler, true_errors=0, **how))
    monkeypatch.setattr("l2c.policies.best.with_responses", lambda *_: pytest.fail("measured once more"))
    small = {"num_trajectories": 4, "pool": 4, "steps": 1, "batch_size": 2, "max_span": 3, "exchanges": 2}
    assert make_graph("best", context, budget=2, **small).provenance["method"] == "best"


def test_best_meets_budgets_that_layers_alone_cannot(make_dit):
    sampler = sampler_of(make_dit())
    how = {"num_trajectories": 2, "batch_size": 2, "responses": {"num_probes": 2, "max_age": STEPS - 1}}
    context = PolicyContext.of(sampler, Calibration.measure(sampler, true_errors=0, **how))
    small = {"num_trajectories": 4, "pool": 4, "steps": 0, "max_span": STEPS - 1, "exchanges": 0}
    least = context.least(context.all_but_first)
    worth = (1 + least) / 2 if least < 2 else 1.5
    with pytest.raises(BudgetOutOfReach, match="the reachable range is"):
        make_graph("best", context, budget=worth, whole_outputs=False, **small)
    graph = make_graph("best", context, budget=worth, **small)
    assert graph.layers[-1] == "output"
    for wrong in (0.9, STEPS + 1):
        with pytest.raises(BudgetOutOfReach, match=rf"the reachable range is 1\.00\.\.{STEPS}"):
            make_graph("best", context, budget=f"{STEPS / wrong}x", **small)


def test_random_layers_of_a_whole_output_take_the_cost_of_either(backbone):
    graph = whole_graph(backbone, "hold")
    draw = random_layers(graph, count_macs(backbone), seed=0)
    assert draw == random_layers(graph, count_macs(WholeOutput(backbone)), seed=0)
    assert count_macs(backbone).evaluations_worth(draw) == 4


@pytest.mark.parametrize("loss", ["image", "output"])
def test_corrections_are_trained_and_applied(make_dit, tmp_path, loss):
    backbone = make_dit()
    graph = whole_graph(backbone, "hold").replace(cfg_scale=3.0)
    sampler = uncached_sampler(backbone, graph, cfg_scale=3.0)
    settings = CorrectionSettings(loss=loss, max_steps=2, batch_size=2)
    path = train_correction(graph, sampler, settings, tmp_path)
    images = sampler_of(backbone, path).sample(LABELS, seed=0)
    assert (images - sampler_of(backbone, graph).sample(LABELS, seed=0)).abs().max() > 0


def test_what_has_no_layers_to_stand_for_is_refused(make_dit):
    for wrong in (3, WholeOutput(make_dit())):
        with pytest.raises(ValueError, match="a whole output is that of a backbone with layers"):
            WholeOutput(wrong)
