"""Adapters (LoRA) and graphs: one rule before and after a graph is applied.

peft is not needed: `Adapted` has what its layers have that diffusers and we read.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

import l2c
from l2c.integrations.diffusers import applied, apply, remove
from l2c.integrations.diffusers.adapters import effective_weights
from l2c.integrations.diffusers.layers import find_layers

TARGETS = ("to_q", "proj_mlp", "proj_out", "linear_1")


class Adapted(nn.Module):
    """A linear layer with adapters of rank 2 around it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.active_adapters: list[str] = []
        self.merged_adapters: list[str] = []
        self.disable_adapters = False

    def add(self, name, seed):
        generator = torch.Generator().manual_seed(seed)
        pair = ((self.base_layer.in_features, 2), (2, self.base_layer.out_features))
        for part, (inside, outside) in zip((self.lora_A, self.lora_B), pair, strict=True):
            part[name] = nn.Linear(inside, outside, bias=False).requires_grad_(False)
            part[name].weight.copy_(torch.randn(outside, inside, generator=generator))
        self.scaling[name] = 0.5
        self.active_adapters = [name]

    def fuse(self):
        for name in self.active_adapters:
            self.base_layer.weight.data += self.scaling[name] * self.lora_B[name].weight @ self.lora_A[name].weight
        self.merged_adapters = list(self.active_adapters)

    def forward(self, x):
        output = self.base_layer(x)
        if self.disable_adapters or self.merged_adapters:
            return output
        for name in self.active_adapters:
            output = output + self.scaling[name] * self.lora_B[name](self.lora_A[name](x))
        return output


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, Adapted)]


@torch.no_grad()
def load(model, name="style", seed=0):
    for path, module in list(model.named_modules()):
        if path.rpartition(".")[2] in TARGETS and isinstance(module, nn.Linear):
            parent, _, own = path.rpartition(".")
            setattr(model.get_submodule(parent), own, Adapted(module))
    for place, layer in enumerate(layers_of(model)):
        layer.add(name, 100 * seed + place)


def unload(model):
    for path, module in list(model.named_modules()):
        if isinstance(module, Adapted):
            parent, _, own = path.rpartition(".")
            setattr(model.get_submodule(parent), own, module.base_layer)


@pytest.fixture
def family(make_family):
    return make_family("flux")


@pytest.fixture
def graph(family, family_graph):
    from l2c.backbones.digest import weights_digest

    return family_graph(family, fingerprint=weights_digest(family.model.state_dict()))


@torch.no_grad()
def test_layers_and_weights_are_those_without_adapters(family):
    names, before = find_layers(family.model), set(effective_weights(family.model))
    load(family.model)
    assert len(layers_of(family.model)) > 6
    assert find_layers(family.model) == names
    with_them = effective_weights(family.model)
    assert before < set(with_them)
    for layer in layers_of(family.model):
        layer.disable_adapters = True
    assert set(effective_weights(family.model)) == before


@torch.no_grad()
def test_adapters_are_refused_before_and_after_in_the_same_words(family, graph):
    load(family.model)
    words = r"other adapters \(LoRA\), or none, than are at work in FluxTransformer2DModel now \(style at 0.5\); "
    mend = r"call pipe.disable_lora\(\), make a graph with them, or pass any_adapters=True"
    with pytest.raises(ValueError, match=words + mend):
        apply(family.model, graph)
    unload(family.model)
    with applied(family.model, graph):
        cached = family.trajectory()
        load(family.model)
        with pytest.raises(ValueError, match=words):
            family.trajectory()
        for layer in layers_of(family.model):
            layer.disable_adapters = True
        again = family.trajectory()
    assert all(torch.equal(a, b) for a, b in zip(again, cached, strict=True))


@torch.no_grad()
def test_fused_adapters_are_noticed_loaded_or_not(family, graph):
    with applied(family.model, graph, any_adapters=True):
        family.trajectory()
        load(family.model)
        family.trajectory()
        for layer in layers_of(family.model):
            layer.fuse()
        with pytest.raises(
            ValueError, match=r"some are fused into them \(style fused\); load the plain weights anew, which"
        ):
            family.trajectory()
    remove(family.model)
    with pytest.raises(ValueError, match=r"now \(style fused\); load the plain weights anew, make"):
        apply(family.model, graph)


@torch.no_grad()
def test_weights_that_were_fused_and_unloaded_are_noticed(family, graph):
    with applied(family.model, graph):
        family.trajectory()
        load(family.model)
        for layer in layers_of(family.model):
            layer.fuse()
        unload(family.model)
        with pytest.raises(ValueError, match=r"the graph was applied \(fused LoRA or projections\?\): the graph"):
            family.trajectory()


@torch.no_grad()
def test_one_value_written_in_place_is_noticed(family, graph):
    with applied(family.model, graph):
        family.trajectory()
        next(weight for weight in family.model.parameters() if weight.dim() == 2).view(-1)[7] += 0.5
        with pytest.raises(ValueError, match="changed after the graph was applied"):
            family.trajectory()


@torch.no_grad()
def test_any_adapters_on_the_base_model(family, graph, make_family):
    """Loaded after the graph, switched and unloaded, the output is that of a graph applied with them in place."""
    other = make_family("flux")
    load(other.model)
    with applied(other.model, graph, any_adapters=True):
        expected = other.trajectory()
    plain = family.trajectory()
    with applied(family.model, graph, any_adapters=True):
        without = family.trajectory()
        load(family.model)
        with_them = family.trajectory()
        load(family.model, "second", seed=1)
        switched = family.trajectory()
        unload(family.model)
        after = family.trajectory()
    assert all(torch.equal(a, b) for a, b in zip(with_them, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, without, strict=True))
    assert not torch.equal(switched[-1], with_them[-1])
    assert all(torch.equal(a, b) for a, b in zip(family.trajectory(), plain, strict=True))


@torch.no_grad()
def test_another_base_model_is_refused_with_any_adapters_too(family, graph, make_family):
    other = make_family("flux", seed=1)
    load(other.model)
    with pytest.raises(ValueError, match="was made for other weights of FluxTransformer2DModel"):
        apply(other.model, graph, any_adapters=True)


@torch.no_grad()
def test_a_graph_made_with_adapters_wants_them(family, family_graph):
    from l2c.backbones.digest import weights_digest

    load(family.model)
    graph = family_graph(family, fingerprint=weights_digest(effective_weights(family.model)))
    assert isinstance(graph, l2c.CacheGraph)
    with applied(family.model, graph):
        family.trajectory()
        layers_of(family.model)[0].scaling["style"] = 0.25
        with pytest.raises(ValueError, match="other adapters"):
            family.trajectory()
