"""Graphs beside what else diffusers does to a model: cached with it equals cached without it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from diffusers.hooks import apply_group_offloading
from test_pipeline_composition import swapped_by_hand

from l2c.integrations.diffusers import apply, remove
from l2c.integrations.diffusers.layers import find_layers

NAMES = ("pixart", "flux")


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def check_beside(family, twin, family_graph):
    """Compare a model under graphs with a twin that never had one: uncached, and with outputs put in their places."""
    plain, graph = twin.trajectory(), family_graph(family)
    everything = ((True,) * graph.num_layers,) * graph.num_evaluations
    apply(family.model, graph.replace(rows=everything))
    assert same(family.trajectory(), plain)
    remove(family.model)
    with swapped_by_hand(twin.model, graph):
        expected = twin.trajectory()
    apply(family.model, graph)
    for _ in range(2):
        assert same(family.trajectory(), expected)
    assert not same(expected, plain)
    remove(family.model)
    assert same(family.trajectory(), plain)


def halved(family):
    """Return a model and its inputs in 16 bits."""
    given = dict(family.conditions)
    given |= {k: v.bfloat16() for k, v in given.items() if getattr(v, "dtype", None) == torch.float32}
    return type(family)(family.model.to(torch.bfloat16), family.x.bfloat16(), given, family.timesteps)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_half_precision(name, make_family, family_graph):
    family, twin = halved(make_family(name)), halved(make_family(name))
    assert twin.trajectory()[-1].dtype == torch.bfloat16
    check_beside(family, twin, family_graph)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@torch.no_grad()
def test_group_offload(kind, order, make_family, family_graph):
    family, offloaded = make_family("pixart"), make_family("pixart")
    apply(family.model, family_graph(family))
    cpu = torch.device("cpu")
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}

    def offload():
        apply_group_offloading(offloaded.model, onload_device=cpu, offload_device=cpu, offload_type=kind, **options)

    if order == "before":
        offload()
    apply(offloaded.model, family_graph(offloaded))
    if order == "after":
        offload()
    for _ in range(2):
        assert same(offloaded.trajectory(), family.trajectory())


@torch.no_grad()
def test_layerwise_casting(make_family, family_graph):
    family, twin = make_family("pixart"), make_family("pixart")
    uncast = twin.trajectory()
    family.model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = dict(family.model.named_parameters())
    for name, weight in twin.model.named_parameters():  # rounded once, where the other is stored in 8 bits
        if stored[name].dtype == torch.float8_e4m3fn:
            weight.copy_(weight.to(torch.float8_e4m3fn))
    assert not same(twin.trajectory(), uncast)
    check_beside(family, twin, family_graph)


@pytest.mark.parametrize("name", NAMES)
@torch._dynamo.config.patch(recompile_limit=64)
@torch.no_grad()
def test_compile_around_the_model(name, make_family, family_graph):
    family = make_family(name)
    apply(family.model, family_graph(family))
    expected = family.trajectory()
    torch._dynamo.reset()
    model = torch.compile(family.model, backend="eager")
    compiled = type(family)(model, family.x, family.conditions, family.timesteps)
    for _ in range(2):
        for ours, theirs in zip(compiled.trajectory(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("depth", [2, 5])
@torch.no_grad()
def test_blocks_that_are_alike_compile_once(depth, make_family, family_graph):
    """However many blocks there are, within dynamo's own limit of 8 compiles of a function."""
    family = make_family("flux")
    sizes = {**family.model.config, "num_layers": depth, "num_single_layers": depth}
    model = type(family.model).from_config(sizes).eval()
    family = type(family)(model, family.x, family.conditions, family.timesteps)
    rows = [[e % 2 == 0] * len(find_layers(model)) for e in range(len(family.timesteps))]
    apply(model, family_graph(family, rows=rows))
    expected, graphs = family.trajectory(), []

    def backend(module, inputs):
        graphs.append(1)
        return module.forward

    torch._dynamo.reset()
    model.compile_repeated_blocks(backend=backend, fullgraph=True)
    assert same(family.trajectory(), expected)
    assert len(graphs) == 5  # two kinds of blocks compute or reuse; the single ones are given two layouts
    torch._dynamo.reset()


@torch._dynamo.config.patch(recompile_limit=64)
@torch.no_grad()
def test_repeated_blocks_compiled(make_family, family_graph):
    family = make_family("flux")
    apply(family.model, family_graph(family))
    expected = family.trajectory()
    graphs = []

    def backend(module, inputs):
        graphs.append(1)
        return module.forward

    torch._dynamo.reset()
    family.model.compile_repeated_blocks(backend=backend, fullgraph=True)
    for ours, theirs in zip(family.trajectory(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    once = len(graphs)
    family.trajectory()
    assert len(graphs) == once  # a second trajectory compiles nothing
    assert 0 < once <= 4 * len(family.timesteps)
    torch._dynamo.reset()
