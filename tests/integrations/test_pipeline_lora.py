"""LoRA by diffusers and peft on pipelines with a graph: cached under any adapters is what is replaced by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")
pytest.importorskip("peft", reason="needs the package peft: pip install '.[dev]'")

from diffusers.utils import logging
from peft import BOFTConfig, FourierFTConfig, HRAConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig
from peft.utils import get_peft_model_state_dict
from test_pipeline_composition import graph_of, swapped_by_hand
from tiny_pipelines import tiny_pipeline

import l2c
from l2c.backbones.digest import weights_digest
from l2c.integrations.diffusers import applied, denoiser_of
from l2c.integrations.diffusers.adapters import at_work, bare, base_weights, effective_weights
from l2c.integrations.diffusers.guidance import guidance_of

TARGETS = ["to_q", "to_out.0", "proj_mlp", "proj_out", "net.2", "linear_1", "conv1"]  # layers and parts of layers


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Keep diffusers from naming the text encoders that the adapters leave alone, and the weights that they fill."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def made(name, tmp_path_factory):
    """Return a pipeline, a graph of its plain weights, and two folders of adapters for it."""
    tiny = tiny_pipeline(name)
    pipe, model = tiny.pipe, denoiser_of(tiny.pipe)
    pipe.set_progress_bar_config(disable=True)
    folders = []
    for seed in (1, 2):
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS), "new")
        generator = torch.Generator().manual_seed(seed)
        for path, weight in model.named_parameters():
            if "lora_" in path:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        folders.append(tmp_path_factory.mktemp("lora"))
        layers = get_peft_model_state_dict(model, adapter_name="new")
        part = "unet" if name == "sd" else "transformer"
        pipe.save_lora_weights(folders[-1], **{f"{part}_lora_layers": layers})
        model.unload_lora()
    graph = graph_of(pipe, tiny.draw).replace(fingerprint=weights_digest(model.state_dict()))
    return tiny, graph, folders


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return made("flux", tmp_path_factory)


def changes(pipe, folders):
    """Yield after each thing that people do with adapters, with those at work then."""
    pipe.load_lora_weights(folders[0], adapter_name="a")
    yield {"a": "at 1"}
    pipe.load_lora_weights(folders[1], adapter_name="b")
    pipe.set_adapters(["b"])
    yield {"b": "at 1"}
    pipe.set_adapters(["a", "b"], [0.5, 0.7])
    yield {"a": "at 0.5", "b": "at 0.7"}
    pipe.disable_lora()
    yield {}
    pipe.enable_lora()
    pipe.delete_adapters("b")
    yield {"a": "at 0.5"}
    pipe.unload_lora_weights()
    yield {}


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_any_adapters(name, tmp_path_factory):
    """Loaded, mixed, scaled, switched off, deleted and unloaded under one graph."""
    tiny, graph, folders = made(name, tmp_path_factory)
    model, found = denoiser_of(tiny.pipe), []
    plain = tiny.draw()
    with applied(tiny.pipe, graph, any_adapters=True):
        for names in changes(tiny.pipe, folders):
            assert at_work(model) == names
            found.append(tiny.draw())
    for cached, _ in zip(found, changes(tiny.pipe, folders), strict=True):
        with swapped_by_hand(model, graph):
            torch.testing.assert_close(tiny.draw(), cached, rtol=1e-4, atol=1e-4)
    assert len({tuple(image.flatten().tolist()) for image in found}) == 5  # two of the six are the plain model's
    assert weights_digest(effective_weights(model)) == graph.fingerprint
    assert torch.equal(tiny.draw(), plain)


def test_without_it_adapters_are_refused_and_their_own_graph_is_taken(case):
    tiny, graph, folders = case
    pipe, model = tiny.pipe, denoiser_of(tiny.pipe)
    with applied(pipe, graph):
        tiny.draw()
        pipe.load_lora_weights(folders[0], adapter_name="a")
        with pytest.raises(ValueError, match=r"than are at work in \w+ now \(a at 1\); call pipe.disable_lora"):
            tiny.draw()
        pipe.disable_lora()
        tiny.draw()
    pipe.enable_lora()
    own = graph.replace(fingerprint=weights_digest(effective_weights(model)))
    assert weights_digest(base_weights(model)) == graph.fingerprint != own.fingerprint
    with applied(pipe, own):
        expected = tiny.draw()
    pipe.unload_lora_weights()
    pipe.load_lora_weights(folders[0], adapter_name="of_another_name")
    with applied(pipe, own):
        assert torch.equal(tiny.draw(), expected)
    pipe.unload_lora_weights()


@pytest.mark.parametrize(("name", "argument"), [("flux", "joint"), ("sd3", "joint"), ("sd", "cross")])
def test_a_scale_in_the_call_is_one_of_the_adapters(name, argument):
    """It scales them for a forward alone; a graph keeps the one that it was made with."""
    tiny = tiny_pipeline(name)
    pipe, model, argument = tiny.pipe, denoiser_of(tiny.pipe), f"{argument}_attention_kwargs"
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q"]), "a")
    graph = graph_of(pipe, tiny.draw).replace(fingerprint=weights_digest(effective_weights(model)))
    half = {argument: {"scale": 0.5}}
    with applied(pipe, graph):
        cached = tiny.draw()
        with pytest.raises(ValueError, match=r"than are at work in \w+ now \(a at 1\); call"):
            tiny.draw(**half)
        assert torch.equal(tiny.draw(), cached)
        assert at_work(model) == {"a": "at 2"}
    with applied(pipe, graph.replace(fingerprint=weights_digest(base_weights(model))), any_adapters=True):
        other = tiny.draw(**half)
        assert not torch.equal(other, cached)
    with applied(pipe, graph.replace(guidance_options=guidance_of(pipe).options_of(pipe, half))):
        assert torch.equal(tiny.draw(**half), other)
        with pytest.raises(ValueError, match=r"now \(a at 4\); call"):
            tiny.draw()


def test_fused(case):
    """Fused adapters are weights; to take them out again leaves rounding, so that the graph is another model's."""
    tiny, graph, folders = case
    pipe, model = tiny.pipe, denoiser_of(tiny.pipe)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pipe.load_lora_weights(folders[0], adapter_name="a")
    with applied(pipe, graph, any_adapters=True):
        tiny.draw()
        pipe.fuse_lora()
        with pytest.raises(ValueError, match=r"some are fused into them \(a fused\); load the plain weights anew"):
            tiny.draw()
    with applied(pipe, graph, any_weights=True):
        cached = tiny.draw()
        pipe.unfuse_lora()
        torch.testing.assert_close(tiny.draw(), cached, rtol=1e-3, atol=1e-3)
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match="was made for other weights"):
        l2c.apply(pipe, graph)
    model.load_state_dict(before)
    with applied(pipe, graph):
        tiny.draw()


def test_fused_projections_are_named():
    tiny = tiny_pipeline("sd3")
    model = denoiser_of(tiny.pipe)
    with applied(tiny.pipe, graph_of(tiny.pipe, tiny.draw).replace(fingerprint=weights_digest(model.state_dict()))):
        tiny.draw()
        model.fuse_qkv_projections()
        with pytest.raises(ValueError, match=r"are fused in SD3\w+ \(fuse_qkv_projections\), which adds weights"):
            tiny.draw()


QUERIES = {"target_modules": ["to_q", "to_out.0"]}
KINDS = {
    "loha": lambda: LoHaConfig(r=2, **QUERIES),
    "lokr": lambda: LoKrConfig(r=2, **QUERIES),
    "ia3": lambda: IA3Config(feedforward_modules=[], **QUERIES),
    "hra": lambda: HRAConfig(r=2, **QUERIES),
    "fourierft": lambda: FourierFTConfig(n_frequency=8, **QUERIES),
    "oft": lambda: OFTConfig(r=0, oft_block_size=4, **QUERIES),
    "boft": lambda: BOFTConfig(boft_block_size=4, **QUERIES),
    "trained whole": lambda: LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["to_k"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_follow_the_rule_of_lora(kind, case):
    """Kinds that keep parameters in other containers, that have no scale, and modules that are trained whole."""
    tiny, graph, _ = case
    pipe, model = tiny.pipe, denoiser_of(tiny.pipe)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    graph = graph.replace(fingerprint=weights_digest(plain))
    torch.manual_seed(3)
    model.add_adapter(KINDS[kind](), "a")
    try:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "a" in name.split("."):
                    weight.add_(0.3 * torch.randn_like(weight))
        assert list(at_work(model)) == ["a"]
        assert weights_digest(base_weights(model)) == graph.fingerprint
        own = weights_digest(effective_weights(model))
        assert own != graph.fingerprint
        with pytest.raises(ValueError, match=r"than are at work in \w+ now \(a at \d\); call pipe.disable_lora"):
            l2c.apply(pipe, graph)
        with applied(pipe, graph, any_adapters=True):
            cached = tiny.draw()
        with swapped_by_hand(model, graph):
            torch.testing.assert_close(tiny.draw(), cached, rtol=1e-4, atol=1e-4)
        with applied(pipe, graph.replace(fingerprint=own)):
            assert torch.equal(tiny.draw(), cached)
    finally:
        unloaded(model)
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


def unloaded(model):
    """Take every adapter off, of any kind, and what was trained whole."""
    for name, module in list(model.named_modules()):
        inner = bare(module)
        if inner is not module:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, inner)
    model._hf_peft_config_loaded = False
    del model.peft_config
