"""Policies on calibrations made by hand, with schedules that follow from the formulas."""

import dataclasses
import inspect
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from l2c.backbones.backbone import fingerprint
from l2c.backbones.presets import load_backbone
from l2c.backbones.shapes import backbone_shapes
from l2c.calibration.measurements import Measurements
from l2c.io.bundled import project_folder
from l2c.policies.context import PolicyContext
from l2c.policies.methods.block_caching import accumulate_rows
from l2c.policies.methods.smoothcache import longest_spans
from l2c.policies.registry import POLICIES, UNMEASURED, make_graph, with_defaults
from l2c.policies.settings import OPTIONS
from l2c.sampling.sampler import Sampler

E = 8


@pytest.fixture
def context(make_dit):
    sampler = Sampler(make_dit(depth=4), solver="ddim", num_evaluations=E)
    blank = PolicyContext.of(sampler).blank
    generator = torch.Generator().manual_seed(0)
    change = torch.rand(3, E, blank.num_layers, generator=generator)
    tensors = {
        "layer_change": change,
        "block_change": change[:, :, ::2].contiguous(),
        "responses": torch.randn(E, blank.num_layers, 4, 16, generator=generator),
    }
    return PolicyContext.of(sampler, Measurements(tensors, blank.binding))


def bits(graph, layer=0):
    return "".join(str(int(row[layer])) for row in graph.rows)


def test_block_caching_sums_changes_since_the_last_computing():
    change = torch.tensor([[9.0], [0.25], [0.25], [0.25], [0.6], [0.1], [0.3], [0.2]])
    rows = accumulate_rows(change, 0.5)
    # 0.25 + 0.25 stays within 0.5, + 0.25 does not; 0.6 alone does not; 0.1 + 0.3 does, + 0.2 does not.
    assert [row[0] for row in rows] == [True, False, False, True, True, False, False, True]
    assert [row[0] for row in accumulate_rows(change, 0.5, max_span=1)][:4] == [True, False, True, False]


def test_smoothcache_takes_the_longest_span_within_alpha():
    errors = torch.tensor(
        [
            # e =  0    1    2    3    4    5    6    7
            [0.0, 0.1, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1],  # k = 1
            [0.0, 0.0, 0.2, 0.9, 0.2, 0.9, 0.9, 0.9],  # k = 2
            [0.0, 0.0, 0.0, 0.3, 0.9, 0.9, 0.9, 0.9],  # k = 3
        ]
    )
    # From 0 the longest within 0.31 is 3; from 4 there is none; from 5 one; 7 computes.
    assert longest_spans(errors, 0.31) == [True, False, False, False, True, True, False, True]
    # Within 0.21: from 0 two, from 3 one, then 5, one, 7.
    assert longest_spans(errors, 0.21) == [True, False, False, True, False, True, False, True]


def test_smoothcache_averages_over_the_blocks_of_a_type(context):
    graph = make_graph("smoothcache", context, alpha=0.5)
    change = context.required_calibration().tensor("layer_change")
    for kind in (0, 1):
        expected = longest_spans(change[:, :, kind::2].mean(2), 0.5)
        assert all([row[layer] for row in graph.rows] == expected for layer in range(kind, 8, 2))
    per_layer = make_graph("smoothcache", context, alpha=0.5, by="layer")
    assert [row[3] for row in per_layer.rows] == longest_spans(change[:, :, 3], 0.5)


@pytest.mark.parametrize("name", ["30-N-2-fora.json", "50-N-2-fora.json"])
def test_interval_agrees_with_the_published_fora_files(reference, make_dit, name):
    path = reference / "smoothcache" / name
    schedule = json.loads(path.read_text())["attn"]
    sampler = Sampler(make_dit(), solver="ddim", num_evaluations=len(schedule))
    graph = make_graph("interval", PolicyContext.of(sampler), n=2)
    # The published files compute the last evaluation whatever the interval; up to there they say the same.
    assert bits(graph)[:-1] == "".join(map(str, schedule[:-1]))


def test_interval_of_three_and_a_fraction(context):
    assert bits(make_graph("interval", context, n=3)) == "10010010"
    assert bits(make_graph("interval", context, n=1.5)) == "10110110"
    with pytest.raises(ValueError, match=r"policy\.n must be a number >= 1, got 0.5"):
        make_graph("interval", context, n=0.5)


def test_deepcache_reuses_inner_blocks_and_faster_diffusion_the_first_half(context):
    deep = make_graph("deepcache", context, n=2).rows[1]
    assert deep == (True, True, False, False, False, False, True, True)
    assert make_graph("faster_diffusion", context, n=2).rows[1] == (False,) * 4 + (True,) * 4
    with pytest.raises(ValueError, match=r"outer must lie in 1..1"):
        make_graph("deepcache", context, outer=2)


def test_late_first_reuses_the_noisiest_routed_evaluations(context):
    graph = make_graph("late_first", context, budget=E - 1.5 * sum(context.cost.layers) / context.cost.evaluation)
    reused = [sum(not bit for bit in row) for row in graph.rows]
    assert reused[context.alternate[0]] == 8
    assert reused[context.alternate[1]] == 4
    assert sum(reused) == 12


def test_top_k_reuses_the_smallest_scores(context):
    graph = make_graph("top_k", context, budget=0.8, routed="all")
    change = context.required_calibration().tensor("layer_change")[0]
    reused = [change[e, i] for e in range(1, E) for i in range(8) if not graph.rows[e][i]]
    kept = [change[e, i] for e in range(1, E) for i in range(8) if graph.rows[e][i]]
    assert max(reused) < min(kept)


def test_top_k_takes_any_score(context, tmp_path):
    order = np.arange(E * 8, dtype=np.float64).reshape(E, 8)[::-1]  # the last evaluation first
    np.save(tmp_path / "scores.npy", order)
    graph = make_graph("top_k", context, budget=6, score=str(tmp_path / "scores.npy"), routed="all")
    uncalibrated = dataclasses.replace(context, calibration=None)
    assert make_graph("top_k", uncalibrated, budget=6, score=str(tmp_path / "scores.npy"), routed="all") == graph
    with pytest.raises(ValueError, match=r"top_k needs a calibration; run l2c calibrate measure=\[responses\]"):
        make_graph("top_k", uncalibrated, budget=6, score="response")
    assert [all(row) for row in graph.rows] == sorted((all(row) for row in graph.rows), reverse=True)
    assert not any(graph.rows[-1])
    responses = context.required_calibration().tensor("responses")[:, :, 0].square().sum(2)
    responses /= torch.tensor(context.cost.layers)
    graph = make_graph("top_k", context, budget=6, score="response", routed="all")
    entries = [(e, layer) for e in range(1, E) for layer in range(8)]
    reused = [responses[entry] for entry in entries if not graph.rows[entry[0]][entry[1]]]
    assert max(reused) < min(responses[entry] for entry in entries if graph.rows[entry[0]][entry[1]])


def test_top_k_refuses_scores_that_do_not_fit(context, tmp_path):
    path = tmp_path / "scores.npy"
    with pytest.raises(FileNotFoundError, match=r"no scores at .*scores.npy"):
        make_graph("top_k", context, budget=6, score=str(path))
    path.write_bytes(b"scores")
    with pytest.raises(ValueError, match="holds no array of numbers"):
        make_graph("top_k", context, budget=6, score=str(path))
    np.save(path, np.zeros((E, 7)))
    with pytest.raises(ValueError, match=r"holds an array \(8, 7\); a score is one finite number per"):
        make_graph("top_k", context, budget=6, score=str(path))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"best", "pab"}))
@pytest.mark.parametrize("budget", [0.8, 5.5, "1.3x"])
def test_budget_is_met(context, name, budget):
    graph = make_graph(name, context, budget=budget)
    wanted = {0.8: 0.8 * E, 5.5: 5.5, "1.3x": E / 1.3}[budget]
    coarse = {
        "interval": 1.0,
        "budcache": 1.0,
        "l2p": 1.0,
        "deepcache": 0.5,
        "faster_diffusion": 0.5,
        "smoothcache": 0.8,
    }
    assert context.cost.evaluations_worth(graph) == pytest.approx(wanted, abs=coarse.get(name, 0.1))
    assert graph.provenance["method"] == name
    Sampler(context.sampler.backbone, graph=graph)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("smothcache", {}, "unknown policy 'smothcache'; did you mean smoothcache"),
        (
            "interval",
            {"delta": 1},
            "policy interval has no option 'delta'; its options are n, .* budget",
        ),
        ("late_first", {}, "policy late_first needs a budget: give a share"),
        ("late_first", {"budget": 0.01}, r"out of reach; the reachable range is \d+\.\d+\.\.8"),
        ("interval", {"budget": 99}, "out of reach"),
        (
            "deepcache",
            {"budget": "1.5x", "n": 3},
            "deepcache finds n by the budget, got n=3 and budget=1.5x; give one",
        ),
        ("interval", {"target": 6}, "policy interval has no option 'target': it is called budget now"),
        (
            "interval",
            {"budget": "much"},
            r"budget must be a share of the uncached MACs \(budget=0.4\), .*, got 'much'",
        ),
        ("faster_diffusion", {"budget": 3}, "out of reach; the reachable range"),
        ("gram", {"budget": 3, "max_span": 1}, r"reused for 1 evaluation in a row at most .* or raise max_span"),
        (
            "gram",
            {"budget": 1.9, "max_span": 7},
            r"outputs of at most 4 evaluations before; the reachable .* responses.max_age=N of l2c calibrate",
        ),
        ("best", {"budget": 0.05}, "out of reach; the reachable range"),
        (
            "smoothcache",
            {"budget": 3, "max_span": 4},
            r"max_span must lie in 1\.\.3, which the calibration holds, got 4",
        ),
        ("block_caching", {"budget": 2, "granularity": "block", "max_span": 1}, "out of reach; the reachable range"),
        ("interval", {"budget": 2, "part": "attn"}, "out of reach; the reachable range"),
        ("late_first", {"budget": 2, "part": "mlp"}, "out of reach; the reachable range"),
        ("l2p", {"budget": 6, "order": 5}, "order must be a whole number >= 2 and <= 4, got 5"),
        ("top_k", {"budget": 6, "score": "x"}, "unknown score"),
        ("random", {"budget": 6, "routed": "some"}, "routed must be"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(context, name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        make_graph(name, context, **options)
    assert "\n" not in str(refusal.value)


def test_a_calibration_of_another_model_or_sampler_are_refused(context, make_dit, tmp_path):
    context.required_calibration().save(tmp_path / "s.safetensors")
    loaded = Measurements.load(tmp_path / "s.safetensors")
    assert torch.equal(loaded.tensor("layer_change"), context.required_calibration().tensor("layer_change"))
    PolicyContext.of(context.sampler, loaded)
    with pytest.raises(ValueError, match="made for weights"):
        PolicyContext.of(Sampler(make_dit(depth=4, seed=3), solver="ddim", num_evaluations=E), loaded)
    with pytest.raises(ValueError, match=r"made for timesteps 8 evaluations from t = 999 to 0, but .* 9 evaluations"):
        PolicyContext.of(Sampler(context.sampler.backbone, solver="ddim", num_evaluations=E + 1), loaded)
    with pytest.raises(ValueError, match="made for guidance scale None"):
        PolicyContext.of(Sampler(context.sampler.backbone, solver="ddim", num_evaluations=E, cfg_scale=2.0), loaded)
    with pytest.raises(ValueError, match="needs a calibration"):
        make_graph("smoothcache", PolicyContext.of(context.sampler))
    (tmp_path / "x").write_text("no")
    with pytest.raises(ValueError, match="cannot read a calibration"):
        Measurements.load(tmp_path / "x")


@pytest.mark.parametrize("name", UNMEASURED)
def test_policies_that_measure_nothing_need_no_weights_and_bind_to_none(name, make_dit):
    shapes = backbone_shapes("dit_digits")
    sampler = Sampler(shapes, solver="ddim", num_evaluations=6)
    graph = make_graph(
        name, PolicyContext.of(sampler), **({"budget": 0.7} if name in ("late_first", "random") else {})
    )
    assert graph.fingerprint is None
    assert graph.num_reused > 0
    for checkpoint in (None, "random"):
        net = load_backbone("dit_digits", checkpoint=checkpoint)
        assert Sampler(net, graph=graph).sample([1, 2], seed=0).isfinite().all()
    with pytest.raises(ValueError, match=r"with 16 layers .* but DiT has 4"):
        Sampler(make_dit(), graph=graph)


def test_policies_that_measure_bind_to_the_weights(context):
    assert make_graph("gram", context, budget=0.7).fingerprint == fingerprint(context.sampler.backbone)
    assert make_graph("interval", context).fingerprint is None


@pytest.mark.parametrize("name", POLICIES)
def test_every_option_of_a_policy_has_a_rule(name):
    options = [key for key in inspect.signature(POLICIES[name]).parameters if key != "context"]
    assert sorted(options) == sorted([*OPTIONS[name], "budget"])
    assert set(OPTIONS) == set(POLICIES)


def test_a_policy_that_is_called_by_itself_checks_its_options(make_dit):
    context = PolicyContext.of(Sampler(make_dit(), solver="ddim", num_evaluations=6))
    with pytest.raises(ValueError, match=r"^first must be a whole number >= 1, got 0"):
        POLICIES["interval"](context, n=2, first=0)
    with pytest.raises(TypeError, match=r"^interval has no argument 'fist'; did you mean first"):
        POLICIES["interval"](context, n=2, fist=1)
    with pytest.raises(ValueError, match=r"a policy makes graphs for a PolicyContext, got Sampler"):
        POLICIES["interval"](context.sampler, n=2)
    assert POLICIES["interval"](context, n=np.float32(2), first=np.int64(1)) == POLICIES["interval"](context, n=2)


def test_outputs_that_were_not_measured_are_not_read_without_a_word(context):
    kept = context.calibration.tensors
    short = {**kept, "responses": kept["responses"][:, :, :2].contiguous()}
    context = dataclasses.replace(context, calibration=dataclasses.replace(context.calibration, tensors=short))
    with pytest.raises(
        ValueError, match="order=3 reads 3 past outputs, but the calibration measured outputs of at mo"
    ):
        make_graph("gram", context, budget=0.8, order=3)
    assert make_graph("gram", context, budget=0.8).provenance["hyperparameters"]["order"] == 2


@pytest.mark.parametrize(
    "path", sorted((project_folder("configs") / "policy").glob("*.yaml")), ids=lambda path: path.stem
)
def test_configurations_hold_the_defaults_of_their_policies(path):
    given = OmegaConf.to_object(OmegaConf.load(path))
    policy = POLICIES[given.pop("name")]
    defaults = with_defaults(policy, {})
    assert {**defaults, **given} == {name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()}
