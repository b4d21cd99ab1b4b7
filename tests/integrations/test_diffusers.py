"""Cache graphs on the real diffusers classes, against a loop of torch hooks that computes everything and swaps."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from diffusers.hooks import HookRegistry

from l2c.backbones.digest import known_digest
from l2c.integrations.diffusers import ROOT, applied, apply, remove
from l2c.integrations.diffusers.layers import find_layers

NAMES = ("dit", "pixart", "sd3", "flux", "sana", "hunyuan", "unet")
CASES = [*((name, None) for name in NAMES), ("unet", ("block", "resnet")), ("unet", ("layer",))]
CASES += [(name, ("block",)) for name in ("dit", "sd3", "flux", "hunyuan")]


def parts(output):
    return list(output) if isinstance(output, tuple) else [output]


def whole_blocks(name):
    return name.rpartition(".")[2].isdigit()


@contextmanager
def swapped(family, graph):
    """Let every module compute, then swap what it adds by hand; yields a setter of the evaluation."""
    at = {"e": 0}
    stored = {name: [] for name in graph.layers}

    def hook_of(index, name):
        def swap(module, args, kwargs, output):
            if "resnets" in name:
                x = args[0] if module.conv_shortcut is None else module.conv_shortcut(args[0])
                base = [x]
            elif whole_blocks(name):
                x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                base = [kwargs["encoder_hidden_states"], x] if len(parts(output)) == 2 else [x]
            else:
                base = [0.0] * len(parts(output))
            e, t = at["e"], graph.timesteps[at["e"]]
            added = [None if o is None else o - b for o, b in zip(parts(output), base, strict=True)]
            if graph.rows[e][index]:
                stored[name].append((t, added))
                return output
            (t1, new), *older = reversed(stored[name])
            if graph.reuse[e] == "linear" and older:
                t0, old = older[0]
                slope = (t - t1) / (t1 - t0)
                new = [None if a is None else a + slope * (a - b) for a, b in zip(new, old, strict=True)]
            result = tuple(None if a is None else b + a for a, b in zip(new, base, strict=True))
            return result if isinstance(output, tuple) else result[0]

        return swap

    handles = [
        family.model.get_submodule(name).register_forward_hook(hook_of(i, name), with_kwargs=True)
        for i, name in enumerate(graph.layers)
    ]
    try:
        yield at
    finally:
        for handle in handles:
            handle.remove()


def by_hand(family, graph):
    x, outputs = family.x, []
    with swapped(family, graph) as at:
        for e, t in enumerate(family.timesteps):
            at["e"] = e
            outputs.append(family(x, t))
            x = x - 0.15 * outputs[-1][:, : x.shape[1]]
    return outputs


def hook_of(family):
    return HookRegistry.check_if_exists_or_initialize(family.model).get_hook(ROOT)


@pytest.mark.parametrize(("name", "of"), CASES)
@torch.no_grad()
def test_a_graph_equals_the_hand_written_loop(name, of, make_family, family_graph):
    family = make_family(name)
    plain = family.trajectory()
    graph = family_graph(family, of=of, reuse=("hold", "hold", "linear", "hold", "linear", "linear"))
    expected = by_hand(family, graph)
    apply(family.model, graph)
    for _ in range(3):  # second and third calls are as cached as the first, without any reset
        for ours, theirs in zip(family.trajectory(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert hook_of(family).cached_bytes == 0  # nothing is read after the last evaluation
    assert not torch.equal(expected[-1], plain[-1])
    remove(family.model)
    for after, before in zip(family.trajectory(), plain, strict=True):
        assert torch.equal(after, before)


@pytest.mark.parametrize(("name", "of"), CASES)
@torch.no_grad()
def test_an_all_compute_graph_changes_no_bit(name, of, make_family, family_graph):
    family = make_family(name)
    plain = family.trajectory()
    rows = ((True,) * len(find_layers(family.model, of=of)),) * len(family.timesteps)
    apply(family.model, family_graph(family, of=of, rows=rows))
    for after, before in zip(family.trajectory(), plain, strict=True):
        assert torch.equal(after, before)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_reused_layers_do_not_run(name, make_family, family_graph):
    family = make_family(name)
    graph = family_graph(family)
    calls = dict.fromkeys(graph.layers, 0)
    for layer in graph.layers:
        inner = next(m for m in family.model.get_submodule(layer).modules() if hasattr(m, "weight"))
        original = inner.forward

        def counted(*args, layer=layer, original=original, **kwargs):
            calls[layer] += 1
            return original(*args, **kwargs)

        inner.forward = counted
    family(family.x, family.timesteps[0])
    once = dict(calls)  # some modules run more than once in a forward
    apply(family.model, graph)
    calls.update(dict.fromkeys(calls, 0))
    family.trajectory()
    for index, layer in enumerate(graph.layers):
        assert calls[layer] == once[layer] * sum(row[index] for row in graph.rows), layer


@pytest.mark.parametrize(
    ("name", "norms"),
    [("dit", {"attn1": "norm1.norm", "ff": "norm3"}), ("pixart", {"attn1": "norm1", "ff": "norm2"})],
)
@torch.no_grad()
def test_norms_that_feed_reused_layers_alone_do_not_run(name, norms, make_family, family_graph):
    family = make_family(name)
    graph = family_graph(family)
    apply(family.model, graph)
    tokens = {}
    wanted = {}
    for index, layer in enumerate(graph.layers):
        block, _, kind = layer.rpartition(".")
        if kind in norms:
            tokens[layer], wanted[layer] = [], [row[index] for row in graph.rows]
            norm = family.model.get_submodule(f"{block}.{norms[kind]}")
            norm.register_forward_hook(lambda _, x, y, seen=tokens[layer]: seen.append(y.shape[1] > 0))
    family.trajectory()
    assert tokens == wanted
    assert any(not all(row) for row in wanted.values())


@pytest.mark.parametrize("name", ["dit", "pixart", "hunyuan"])
@torch.no_grad()
def test_blocks_in_a_row_that_agree_share_one_output(name, make_family, family_graph):
    family = make_family(name)
    count = len(find_layers(family.model, of=("block",)))
    bits = ((1, 1), (1, 0), (0, 1), (1, 1), (1, 0), (1, 0))
    rows = [[bool(first)] + [bool(rest)] * (count - 1) for first, rest in bits]
    graph = family_graph(family, of=("block",), rows=rows, reuse=("hold", "hold", "hold", "hold", "hold", "linear"))
    expected = by_hand(family, graph)
    apply(family.model, graph)
    family(family.x, family.timesteps[0])
    held = hook_of(family).cached_bytes
    for _ in range(2):
        for ours, theirs in zip(family.trajectory(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    tokens = held // (1 + (count - 1 if name == "hunyuan" else 1))
    assert held == tokens * (count if name == "hunyuan" else 2)  # long skips read every block's output


@torch.no_grad()
def test_a_late_start_computes_what_was_never_computed(make_family, family_graph):
    family = make_family("pixart")
    plain = family.trajectory(range(3, 6))
    graph = family_graph(family)
    apply(family.model, graph)
    family.trajectory(range(2))  # broken off
    late = family.trajectory(range(3, 6))
    remove(family.model)
    apply(family.model, graph)
    again = family.trajectory(range(3, 6))
    assert torch.equal(late[0], plain[0]) or not torch.equal(late[0], again[0])  # kept from evaluations 0 and 1
    assert torch.equal(again[0], plain[0])
    assert not torch.equal(again[-1], plain[-1])


@torch.no_grad()
def test_guidance_branches_do_not_share(make_family, family_graph):
    family = make_family("pixart")
    graph = family_graph(family)
    other = {**family.conditions, "encoder_hidden_states": torch.randn(2, 7, 24)}
    cond, uncond = family, type(family)(family.model, family.x, other, family.timesteps)
    apply(family.model, graph)
    expected = [branch.trajectory() for branch in (cond, uncond)]

    def interleaved(context):
        x, outputs = [family.x, family.x], []
        for t in family.timesteps:
            for i, branch in enumerate((cond, uncond)):
                with context(i):
                    outputs.append(branch(x[i], t))
                x[i] = x[i] - 0.15 * outputs[-1][:, :4]
        return outputs

    @contextmanager
    def nameless(i):
        yield

    for context in (nameless, lambda i: family.model.cache_context(("cond", "uncond")[i])):
        if context is not nameless and not hasattr(family.model, "cache_context"):
            continue
        outputs = interleaved(context)
        for i in (0, 1):
            for ours, theirs in zip(outputs[i::2], expected[i], strict=True):
                assert torch.equal(ours, theirs)


@torch.no_grad()
def test_another_graph_takes_the_place_of_the_first(make_family, family_graph):
    family = make_family("dit")
    graph = family_graph(family)
    other = graph.replace(rows=[[not fresh for fresh in row] if e else row for e, row in enumerate(graph.rows)])
    plain = family.trajectory()
    with applied(family.model, other):
        expected = family.trajectory()
    apply(family.model, graph)
    first = family.trajectory()
    with pytest.raises(ValueError, match="other weights"):
        apply(family.model, other.replace(fingerprint="sha256:" + "0" * 64))
    for ours, theirs in zip(family.trajectory(), first, strict=True):  # the first one is still there
        assert torch.equal(ours, theirs)
    apply(family.model, other)
    for ours, theirs in zip(family.trajectory(), expected, strict=True):
        assert torch.equal(ours, theirs)
    remove(family.model)
    for ours, theirs in zip(family.trajectory(), plain, strict=True):
        assert torch.equal(ours, theirs)


def test_bad_input_is_one_sentence(make_family, family_graph):
    family, other = make_family("dit"), make_family("pixart")
    graph = family_graph(family)
    for stranger, sentence in (("sd3", r"with 6 layers .* but \w+ has"), ("pixart", ", but the model is PixArtT")):
        with pytest.raises(ValueError, match=f"made for DiTTransformer2DModel ?{sentence}"):
            apply(make_family(stranger).model, graph)
    shallower = family_graph(family, layers=graph.layers[:4], rows=[row[:4] for row in graph.rows])
    with pytest.raises(ValueError, match=r"has 2 more of their kind \(transformer_blocks.2.attn1"):
        apply(family.model, shallower)
    with pytest.raises(ValueError, match="other weights of DiTTransformer2DModel"):
        apply(family.model, graph.replace(fingerprint="sha256:" + "0" * 64))
    with pytest.raises(ValueError, match="neither a transformer nor a unet"):
        apply(object(), graph)
    apply(family.model, graph)
    with (
        pytest.raises(ValueError, match=r"has a cache graph already, .*; call l2c\.remove first"),
        applied(family.model, graph),
    ):
        pass
    with pytest.raises(ValueError, match=r"called at t = 980, but the graph's 6 evaluations lie at 951, 751, 501"):
        family(family.x, 980.0)
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    apply_pyramid_attention_broadcast(other.model, config)
    with pytest.raises(ValueError, match="already cached by pyramid_attention_broadcast"):
        apply(other.model, family_graph(other))
    with pytest.raises(ValueError, match="give the pipeline"):
        apply(family.model, graph, resample=True)


class AroundLinear(nn.Module):
    """A LoRA by hand: a linear layer, and what is added to it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.added = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x):
        return self.base(x) + self.added(x)


def test_parts_that_are_exchanged_under_a_graph_are_noticed(make_family, family_graph):
    family = make_family("dit")
    model, graph = family.model, family_graph(family)
    graph = graph.replace(fingerprint=known_digest(model))
    apply(model, graph)
    before = family.trajectory()
    attention = model.transformer_blocks[0].attn1
    plain = attention.to_q
    attention.to_q = AroundLinear(plain)
    with pytest.raises(ValueError, match="weights changed after the graph was applied"):
        family.trajectory()
    attention.to_q = plain
    assert all(torch.equal(a, b) for a, b in zip(before, family.trajectory(), strict=True))
    remove(model)
    apply(model, graph, any_weights=True)
    blocks, model.transformer_blocks = model.transformer_blocks, model.transformer_blocks[:-1]
    with pytest.raises(ValueError, match=r"has no layer transformer_blocks.2\S+, which the cache graph names"):
        family.trajectory()
    model.transformer_blocks = blocks
    remove(model)
    inner = graph.replace(model="Outer", layers=[f"inner.{name}" for name in graph.layers], fingerprint=None)
    apply(Outer(model), inner)
    with pytest.raises(ValueError, match=r"applied to another model that has layers of this Outer; call l2c\.remove"):
        apply(Outer(model), inner)


class Outer(nn.Module):
    """A module around a model."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t):
        return self.inner(x, timestep=t)


def test_a_module_of_ones_own_that_does_not_fit_is_one_sentence(make_family, family_graph):
    family = make_family("dit")
    graph, outer = family_graph(family), Outer(family.model)
    inner = graph.replace(layers=[f"inner.{name}" for name in graph.layers])
    with pytest.raises(ValueError, match="but the model is Outer, though it has such layers"):
        apply(outer, inner)
    with pytest.raises(ValueError, match=r"with 6 layers .* but Outer has 6 \(inner\.transformer_blocks\.0\.attn1, "):
        apply(outer, graph)
    with pytest.raises(ValueError, match=r"layer inner.transformer_blocks is a ModuleList, which never runs itself"):
        apply(outer, inner.replace(model="Outer", layers=["inner.transformer_blocks"], rows=[[True]] * 6))
