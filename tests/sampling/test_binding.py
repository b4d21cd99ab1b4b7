"""What a graph is valid for, whoever makes it."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.backbones.digest import own_facts, weights_digest
from l2c.diffusion import Guidance
from l2c.graph.cache_graph import CacheGraph
from l2c.integrations.smoothcache import import_smoothcache
from l2c.policies.context import PolicyContext
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler


def test_policies_and_imports_make_the_same_binding(make_dit, tmp_path):
    net = make_dit()
    sampler = Sampler(net, solver="ddim", num_evaluations=4)
    expected = binding_of(net, sampler.solver, weights_bound=True)
    torch.save({"routers": {f"{i}.prob": torch.zeros(4) for i in range(4)}}, tmp_path / "r.pt")
    (tmp_path / "s.json").write_text(json.dumps({"attn": [1, 0, 1, 1], "mlp": [1, 1, 1, 0]}))
    routers = l2c.import_l2c_router(tmp_path / "r.pt", net, solver="ddim", num_evaluations=4, threshold=0.5)
    schedule = import_smoothcache(tmp_path / "s.json", net)
    assert routers.binding == schedule.binding == PolicyContext.of(sampler).blank.binding == expected
    assert expected.fingerprint == fingerprint(net)
    assert expected.solver_options == {"eta": 0.0}


def test_a_binding_makes_a_graph_and_the_head_of_a_file(make_dit):
    net = make_dit()
    solver = Sampler(net, solver="ddim", num_evaluations=4).solver
    binding = binding_of(net, solver, weights_bound=False, guidance=Guidance("dit", 2.0))
    graph = CacheGraph.blank(binding, provenance={"method": "none"})
    assert graph.binding == binding
    assert graph.num_reused == 0
    assert CacheGraph.from_json(graph.to_json()).binding == binding
    assert graph.binding.head == {
        "model": "DiT",
        "weights": None,
        "solver": "ddim",
        "solver_options": {"eta": 0.0},
        "timesteps": list(solver.timesteps),
        "guidance_scale": 2.0,
    }


@pytest.fixture(params=["plain", "compiled", "bf16"])
def bound(request, make_dit, make_graph):
    """Return a network and a sampler whose graph is bound to its weights."""
    net = make_dit()
    graph = make_graph(net, num_evaluations=3, fingerprint=fingerprint(net))
    sampler = Sampler(net, graph=graph, precision="bf16" if request.param == "bf16" else None)
    if request.param == "compiled":
        sampler.compile(1, backend="eager", progress=False)
    return sampler.backbone, sampler


def doubled(net):
    return {name: 2 * value for name, value in net.state_dict().items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.blocks[1].mlp.fc1.weight.mul_(2),
        lambda net: net.blocks[0].mlp.fc1.weight.view(-1)[7].add_(0.5),  # one value
        lambda net: net.load_state_dict(doubled(net)),
        lambda net: net.load_state_dict(doubled(net), assign=True),
        lambda net: [weight.data.copy_(2 * weight) for weight in net.parameters()],  # not in torch's counters
        lambda net: setattr(net.blocks[0].mlp.fc1, "bias", torch.nn.Parameter(net.blocks[0].mlp.fc1.bias + 1)),
        lambda net: net.blocks.insert(0, net.blocks.pop(1)),
    ],
    ids=["in place", "one value", "loaded", "assigned", "through .data", "another parameter", "blocks change places"],
)
@torch.no_grad()
def test_weights_that_change_after_a_sampler_was_made_are_refused(bound, change):
    net, sampler = bound
    before, images = copy.deepcopy(net.state_dict()), sampler.sample([1], seed=0)
    change(net)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^weights changed after the sampler was made: the graph was made for"):
            sampler.sample([1], seed=0)
    if next(net.parameters()).dtype != torch.float32:
        return  # a cast keeps the digest from before it until the weights change
    net.load_state_dict(before)
    assert torch.equal(sampler.sample([1], seed=0), images)


@pytest.mark.parametrize(("family", "size", "step"), [("make_dit", "hidden_size", 1), ("make_uvit", "embed_dim", 2)])
def test_tensors_of_each_kind_that_are_written_whole_are_noticed_at_any_depth(family, size, step, request):
    missed = []
    for depth in range(2, 41, step):
        net = request.getfixturevalue(family)(depth=depth, **{size: 8})
        kinds = defaultdict(list)
        for name, weight in net.named_parameters():
            kinds[re.sub(r"\d+", "", name)].append(weight)
        kinds["matrices of blocks"] = [w for name, w in net.named_parameters() if "block" in name and w.dim() == 2]
        before = own_facts(net)
        for kind, weights in kinds.items():
            for weight in weights:
                weight.data.add_(1)
            changed, before = before, own_facts(net)
            missed += [(depth, kind)] * (changed == before)
        assert own_facts(net) == before
    assert not missed


def test_a_merge_of_all_matrices_of_a_deeper_network_is_refused(make_dit, make_graph):
    net = make_dit(depth=6)
    sampler = Sampler(net, graph=make_graph(net, num_evaluations=3, fingerprint=fingerprint(net)))
    sampler.sample([1], seed=0)
    for block in net.blocks:
        for weight in (block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight):
            weight.data.mul_(3)
    with pytest.raises(ValueError, match=r"^weights changed after the sampler was made: the graph was made for"):
        sampler.sample([1], seed=0)


def test_part_of_the_columns_of_a_matrix_is_noticed(make_dit):
    net = make_dit(hidden_size=32)
    weight = net.blocks[1].mlp.fc1.weight
    for half in (slice(0, 16), slice(16, 32)):
        before = own_facts(net)
        weight.data[:, half] *= 2
        assert own_facts(net) != before


def test_another_frequency_shift_is_refused_and_digested(bound):
    net, sampler = bound
    images, digest = sampler.sample([1], seed=0), fingerprint(net)
    net.t_embedder.frequency_shift = 1
    with pytest.raises(ValueError, match=r"^weights changed after the sampler was made: the graph was made for"):
        sampler.sample([1], seed=0)
    if next(net.parameters()).dtype != torch.float32:
        return  # a cast keeps the digest from before it until what counts changes
    shifted = fingerprint(net)
    assert shifted == fingerprint(l2c.WholeOutput(net)) == fingerprint(copy.deepcopy(net).half())
    assert shifted != digest == weights_digest(net.state_dict())
    net.t_embedder.frequency_shift = 0
    assert fingerprint(net) == digest
    assert torch.equal(sampler.sample([1], seed=0), images)


@torch.no_grad()
def test_weights_written_with_their_own_values_are_digested_once_and_taken(bound, monkeypatch):
    net, sampler = bound
    images = sampler.sample([1], seed=0)
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    looked = []
    monkeypatch.setattr("l2c.sampling.binding.fingerprint", lambda net: looked.append(1) or fingerprint(net))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: sampler.sample([1], seed=0), range(16)))
    assert all(torch.equal(image, images) for image in found)
    assert 1 <= len(looked) <= 8
    sampler.sample([1], seed=0)
    assert len(looked) <= 8
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):  # whose tensors are others
        assert torch.equal(twin.sample([1], seed=0), images)


def test_weights_without_counters_are_watched_by_values(make_dit, make_graph):
    with torch.inference_mode():
        net = make_dit()
        sampler = Sampler(net, graph=make_graph(net, fingerprint=fingerprint(net)))
        sampler.sample([1], seed=0)
        for weight in net.parameters():
            weight.mul_(2)
        with pytest.raises(ValueError, match="weights changed after the sampler was made"):
            sampler.sample([1], seed=0)


@torch.no_grad()
def test_other_weights_are_taken_where_any_will_do(make_dit, make_graph):
    net = make_dit()
    graph = make_graph(net)
    samplers = (
        Sampler(net, graph=graph.replace(fingerprint="sha256:" + 64 * "a"), any_weights=True),
        Sampler(net, graph=graph),
    )
    net.blocks[0].mlp.fc1.weight.mul_(2)
    images = [sampler.sample([1], seed=0) for sampler in samplers]
    assert torch.equal(*images)
