"""The one seam: mix, plans of one pass, and what both backbones promise about them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from l2c.backbones.layer_cache import LayerPlan, mix


def never() -> torch.Tensor:
    raise AssertionError("a reused layer was computed")


def all_rows(num_layers: int, fresh: bool) -> tuple[bool, ...]:
    return (fresh,) * num_layers


# --- mix ----------------------------------------------------------------------------------------------------


def test_mix_computes_reuses_or_blends():
    new, old = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert mix(True, lambda: new, old) is new
    assert mix(False, never, old) is old
    weight = torch.tensor(0.25)
    assert torch.equal(mix(weight, lambda: new, old), 0.25 * new + 0.75 * old)


def test_mix_is_differentiable_in_its_weight():
    new, old = torch.randn(2, 3), torch.randn(2, 3)
    weight = torch.tensor(0.3, requires_grad=True)
    mix(weight, lambda: new, old).sum().backward()
    torch.testing.assert_close(weight.grad, (new - old).sum())


# --- plans --------------------------------------------------------------------------------------------------


def test_plan_hides_the_cached_output_of_computed_layers():
    outputs = [torch.ones(1), torch.ones(1)]
    plan = LayerPlan(("a", "b"), (True, False), outputs, None)
    assert plan.block(0) == ((True, False), (None, outputs[1]))


@pytest.mark.parametrize("row", [np.array([1, 0]), [np.bool_(True), np.bool_(False)], [1, 0]])
def test_plan_turns_foreign_bools_into_pythons(row):
    (a, m), _ = LayerPlan(("a", "b"), row, [None, torch.ones(1)], None).block(0)
    assert a is True
    assert m is False


@pytest.mark.parametrize("what", ["row", "cache", "keep"])
def test_wrong_lengths_are_refused(backbone, make_batch, what):
    n = backbone.num_layers
    arguments = {"row": all_rows(n, True), "cache": (None,) * n, "keep": all_rows(n, True)}
    arguments[what] = arguments[what][1:]
    with pytest.raises(ValueError, match=f"{what} has {n - 1} entries, but this backbone has {n} layers"):
        backbone.forward_cached(*make_batch(backbone), **arguments)


def test_missing_cache_is_refused_by_name(backbone, make_batch):
    n = backbone.num_layers
    batch = make_batch(backbone)
    row = [True] * n
    row[3] = False
    with pytest.raises(ValueError, match=f"layer {backbone.layer_names[3]} is to be reused"):
        backbone.forward_cached(*batch, row)
    with pytest.raises(ValueError, match=f"layer {backbone.layer_names[0]} is to be reused"):
        backbone.forward_cached(*batch, torch.full((n,), 0.5))
    _, cache = backbone.forward_cached(*batch, all_rows(n, True), keep=[i != 3 for i in range(n)])
    with pytest.raises(ValueError, match=backbone.layer_names[3]):
        backbone.forward_cached(*batch, row, cache)


# --- both backbones -----------------------------------------------------------------------------------------


@pytest.fixture
def warm(backbone, make_batch):
    """A backbone, inputs, and a full cache from other inputs."""
    _, cache = backbone.forward_cached(*make_batch(backbone, seed=2), all_rows(backbone.num_layers, True))
    return backbone, make_batch(backbone, seed=1), cache


def test_caching_changes_the_output(warm):
    """Guards the other tests: with zero gates they would all pass."""
    backbone, batch, cache = warm
    full = backbone(*batch)
    for i in range(backbone.num_layers):
        row = [j != i for j in range(backbone.num_layers)]
        output, _ = backbone.forward_cached(*batch, row, cache)
        assert (output - full).abs().max() > 1e-3, backbone.layer_names[i]


def test_full_row_is_the_plain_forward(warm):
    backbone, batch, cache = warm
    full = backbone(*batch)
    output, _ = backbone.forward_cached(*batch, all_rows(backbone.num_layers, True), cache)
    assert torch.equal(output, full)


def test_soft_zeros_and_ones_equal_the_static_row(warm, random_rows):
    backbone, batch, cache = warm
    for row in random_rows(8, backbone.num_layers, seed=3):
        static, static_cache = backbone.forward_cached(*batch, row, cache)
        soft, soft_cache = backbone.forward_cached(*batch, torch.tensor(row).float(), cache)
        assert torch.equal(soft, static)
        assert all(torch.equal(a, b) for a, b in zip(soft_cache, static_cache, strict=True))


def test_numpy_rows_behave(warm, random_rows):
    backbone, batch, cache = warm
    row = random_rows(2, backbone.num_layers, seed=4)[1]
    expected, _ = backbone.forward_cached(*batch, row, cache)
    for foreign in (np.array(row), [np.bool_(bit) for bit in row], np.array(row, dtype=int)):
        assert torch.equal(backbone.forward_cached(*batch, foreign, cache)[0], expected)


def test_calls_made_are_the_ones_of_the_row(warm, random_rows, layers_of):
    backbone, batch, cache = warm
    calls: Counter[str] = Counter()

    def count(name):
        return lambda *_: calls.update([name])

    for name, layer in zip(backbone.layer_names, layers_of(backbone), strict=True):
        block, _, kind = name.rpartition(".")
        norm = backbone.get_submodule(f"{block}.{'norm1' if kind == 'attn' else 'norm2'}")
        layer.register_forward_hook(count(name))
        norm.register_forward_hook(count(f"norm of {name}"))
    for row in random_rows(6, backbone.num_layers, seed=5):
        calls.clear()
        backbone.forward_cached(*batch, row, cache)
        computed = [name for name, fresh in zip(backbone.layer_names, row, strict=True) if fresh]
        assert calls == Counter([*computed, *(f"norm of {name}" for name in computed)])


def test_reused_outputs_are_carried_on(backbone, make_batch):
    """A chain of reuses hands on the very tensor of its last computation."""
    n = backbone.num_layers
    _, first = backbone.forward_cached(*make_batch(backbone, seed=1), all_rows(n, True))
    chosen = n - 3
    row = [i != chosen for i in range(n)]
    cache = first
    for seed in (2, 3, 4):
        batch = make_batch(backbone, seed=seed)
        output, cache = backbone.forward_cached(*batch, row, cache)
        assert cache[chosen] is first[chosen]
        assert not torch.equal(cache[0], first[0])
        only = [None] * n
        only[chosen] = first[chosen]
        assert torch.equal(output, backbone.forward_cached(*batch, row, only)[0])


def test_soft_outputs_are_kept_blended(warm):
    backbone, batch, cache = warm
    weights = torch.full((backbone.num_layers,), 0.25)
    _, blended = backbone.forward_cached(*batch, weights, cache)
    _, fresh = backbone.forward_cached(*batch, all_rows(backbone.num_layers, True))
    # Only the first layer sees the same input in both passes.
    torch.testing.assert_close(blended[0], 0.25 * fresh[0] + 0.75 * cache[0])


def test_keep_returns_only_what_it_says(warm, random_rows):
    backbone, batch, cache = warm
    n = backbone.num_layers
    row, keep = random_rows(3, n, seed=6)[1:]
    full_output, everything = backbone.forward_cached(*batch, row, cache)
    output, kept = backbone.forward_cached(*batch, row, cache, keep)
    assert torch.equal(output, full_output)
    for wanted, got, whole in zip(keep, kept, everything, strict=True):
        assert torch.equal(got, whole) if wanted else got is None


def test_nothing_is_remembered_between_passes(warm):
    backbone, batch, cache = warm
    before = backbone(*batch)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in backbone.named_modules()}
    backbone.forward_cached(*batch, all_rows(backbone.num_layers, False), cache)
    assert torch.equal(backbone(*batch), before)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert {name: set(vars(module)) for name, module in backbone.named_modules()} == attributes


def test_only_soft_rows_get_gradients(warm):
    backbone, batch, cache = warm
    row = torch.full((backbone.num_layers,), 0.5, requires_grad=True)
    output, _ = backbone.forward_cached(*batch, row, cache)
    output.square().mean().backward()
    assert (row.grad != 0).all()
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_soft_gradient_equals_the_finite_difference(warm):
    backbone, batch, cache = warm
    backbone.double()
    batch, cache = (batch[0].double(), *batch[1:]), [output.double() for output in cache]

    def error(row):
        return backbone.forward_cached(*batch, row, cache)[0].square().mean()

    row = torch.linspace(0.2, 0.8, backbone.num_layers, dtype=torch.float64)
    leaf = row.clone().requires_grad_()
    error(leaf).backward()
    for i in range(backbone.num_layers):
        step = torch.zeros_like(row)
        step[i] = 1e-5
        difference = (error(row + step) - error(row - step)) / 2e-5
        torch.testing.assert_close(leaf.grad[i], difference, rtol=1e-5, atol=1e-9)
