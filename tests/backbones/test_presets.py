"""Presets, strict loading, fingerprints."""

from __future__ import annotations

import argparse
import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.backbones.presets import ModelPreset, PublishedSampling, build_backbone, model_preset
from l2c.backbones.weights import find_checkpoint, load_strict, load_weights
from l2c.diffusion import SOLVERS, Guidance, make_solver, schedule_of
from l2c.io.bundled import model_names

# name: input, blocks, width, heads, patch, output channels, labels
SHAPES = {
    "dit_s2": ((4, 32, 32), 12, 384, 6, 2, 8, 1000),
    "dit_b4": ((4, 32, 32), 12, 768, 12, 4, 8, 1000),
    "dit_l8": ((4, 32, 32), 24, 1024, 16, 8, 8, 1000),
    "dit_l2": ((4, 32, 32), 24, 1024, 16, 2, 8, 1000),
    "dit_xl2": ((4, 32, 32), 28, 1152, 16, 2, 8, 1000),
    "dit_xl2_512": ((4, 64, 64), 28, 1152, 16, 2, 8, 1000),
    "dit_digits": ((1, 8, 8), 8, 96, 4, 2, 1, 10),
    "dit_emoji": ((3, 32, 32), 12, 96, 3, 4, 3, 10),
    "uvit_cifar10_s2": ((3, 32, 32), 13, 512, 8, 2, 3, 0),
    "uvit_celeba64_s4": ((3, 64, 64), 13, 512, 8, 4, 3, 0),
    "uvit_imagenet64_m4": ((3, 64, 64), 17, 768, 12, 4, 3, 1000),
    "uvit_imagenet64_l4": ((3, 64, 64), 21, 1024, 16, 4, 3, 1000),
    "uvit_l2": ((4, 32, 32), 21, 1024, 16, 2, 4, 1000),
    "uvit_h2": ((4, 32, 32), 29, 1152, 16, 2, 4, 1000),
    "uvit_h4_512": ((4, 64, 64), 29, 1152, 16, 4, 4, 1000),
    "uvit_digits": ((1, 8, 8), 9, 96, 4, 2, 1, 10),
}
NUM_PARAMETERS = {
    "dit_s2": 33e6,
    "dit_b2": 130e6,
    "dit_l2": 458e6,
    "dit_xl2": 675e6,
    "uvit_h2": 501e6,
    "uvit_l2": 287e6,
}


def on_meta(name):
    with torch.device("meta"):
        return build_backbone(model_preset(name))


# --- presets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_names())
def test_every_preset_builds_and_its_settings_fit(name):
    preset, net = model_preset(name), on_meta(name)
    assert preset.name == name == net.conventions.name
    x = torch.zeros((1, *net.input_shape), device="meta")
    y = torch.zeros(1, dtype=torch.long, device="meta") if net.num_embedded_labels else None
    assert net(x, torch.zeros(1, device="meta"), y).shape[2:] == x.shape[2:]
    conventions = net.conventions
    schedule = schedule_of(conventions)
    sampling = preset.sampling
    assert sampling.solver in SOLVERS
    make_solver(sampling.solver, schedule, sampling.num_evaluations)
    guidance = Guidance(conventions.guidance, sampling.cfg_scale)
    assert guidance.active == (conventions.null_label is not None)


@pytest.mark.parametrize("name", SHAPES)
def test_presets_have_the_published_shapes(name):
    net = on_meta(name)
    shape, blocks, width, heads, patch, channels, labels = SHAPES[name]
    attention = net.get_submodule(net.layer_names[0])
    assert (net.input_shape, net.num_layers, net.num_labels) == (shape, 2 * blocks, labels)
    assert (attention.num_heads, attention.qkv.in_features, net.patch_size) == (heads, width, patch)
    assert net.get_submodule(net.layer_names[1]).fc1.out_features == 4 * width
    y = torch.zeros(1, dtype=torch.long, device="meta") if net.num_embedded_labels else None
    output = net(torch.zeros((1, *shape), device="meta"), torch.zeros(1, device="meta"), y)
    assert output.shape == (1, channels, *shape[1:])


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_presets_have_the_published_size(name):
    count = sum(p.numel() for p in on_meta(name).parameters())
    assert count == pytest.approx(NUM_PARAMETERS[name], rel=0.01)


def test_preset_conventions():
    assert on_meta("dit_xl2").conventions.null_label == 1000
    latent = on_meta("uvit_h2").conventions
    assert (latent.schedule, latent.first_timestep, latent.null_label) == ("scaled_linear", 1, 1000)
    pixels = on_meta("uvit_imagenet64_m4").conventions
    assert (pixels.schedule, pixels.first_timestep, pixels.null_label) == ("linear", 0, None)


def test_unknown_names_are_told_near_ones():
    with pytest.raises(ValueError, match=r"unknown model 'dit_xl22'; did you mean .*dit_xl2"):
        l2c.load_backbone("dit_xl22")
    with pytest.raises(ValueError, match="unknown model 'resnet50'; known are dit_b2, "):
        l2c.load_backbone("resnet50")
    with pytest.raises(ValueError, match=r"unknown model '../model/dit_xl2'"):
        l2c.load_backbone("../model/dit_xl2")


def test_arguments_that_do_not_fit_are_refused():
    for args, words in (
        ({"depth": 0}, "depth must be a whole number in .*, got 0"),
        ({"in_channels": "4"}, "in_channels must be a whole number in .*, got '4'"),
        ({"hidden_size": 30}, r"hidden_size must be a multiple of 4 and of num_heads \(16\), got 30"),
        ({"learn_sigma": "no"}, "learn_sigma must be True or False, got 'no'"),
    ):
        with pytest.raises(ValueError, match=f"of model mine do not fit: {words}"):
            build_backbone({"name": "mine", "backbone": "dit", "args": args})
    tiny = {"depth": 1, "hidden_size": 32, "num_heads": 2, "num_classes": 3}
    with pytest.raises(ValueError, match="null_label of model mine must be one of its 4 labels, from 0 on, got 4"):
        build_backbone({"name": "mine", "backbone": "dit", "args": tiny, "null_label": 4})
    with pytest.raises(ValueError, match=r"arguments of model mine do not fit: .*'width'"):
        build_backbone({"name": "mine", "backbone": "dit", "args": {"width": 8}})
    with pytest.raises(ValueError, match="unknown backbone 'unet'; known are dit, uvit"):
        build_backbone({"name": "mine", "backbone": "unet", "args": {}})
    with pytest.raises(ValueError, match=r"a model preset has no key 'urls'; did you mean url"):
        build_backbone({"name": "mine", "backbone": "dit", "urls": "x.pt"})
    with pytest.raises(ValueError, match=r"a model preset needs the key 'backbone', got name"):
        build_backbone({"name": "mine"})
    with pytest.raises(ValueError, match=r"the key 'sampling' of model mine does not fit: .*'steps'"):
        build_backbone({"name": "mine", "backbone": "dit", "sampling": {"solver": "ddim", "steps": 3}})


def test_presets_are_copied_and_pickled():
    preset = model_preset("dit_digits")
    assert copy.deepcopy(preset) == preset == pickle.loads(pickle.dumps(preset))


def test_presets_are_values():
    preset = model_preset("dit_xl2")
    assert preset == ModelPreset.of("dit_xl2") == ModelPreset.of(preset)
    with pytest.raises(AttributeError):
        preset.name = "other"
    assert preset.sampling == PublishedSampling("ddim", 20, 1.5)
    with pytest.raises(ValueError, match="model mine names no weights; give checkpoint=PATH"):
        l2c.load_backbone({"name": "mine", "backbone": "dit"})


# --- weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def preset():
    """A preset of the size of the tests' tiny DiT."""
    args = {"input_size": 8, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return {"name": "tiny", "backbone": "dit", "args": args, "checkpoint": "tiny.safetensors"}


def test_missing_weights_say_what_to_do(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("L2C_CHECKPOINTS", str(tmp_path / "weights"))
    preset["url"] = "https://example.org/tiny"
    with pytest.raises(FileNotFoundError) as caught:
        l2c.load_backbone(preset)
    message = str(caught.value)
    for part in (
        "weights of tiny are missing: no file 'tiny.safetensors'",
        str(tmp_path / "weights" / "tiny.safetensors"),
        "checkpoints/tiny.safetensors",
        "https://example.org/tiny",
        "checkpoint=PATH",
        "random for benchmarks",
        "L2C_CHECKPOINTS",
    ):
        assert part in message, part
    assert "\n" not in message
    preset["url"] = None
    with pytest.raises(FileNotFoundError, match="no official file is published"):
        l2c.load_backbone(preset)


def test_weights_are_looked_for_in_all_places(preset, make_dit, tmp_path, monkeypatch):
    save_file(make_dit().state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(FileNotFoundError):
        l2c.load_backbone(preset)
    assert l2c.load_backbone(preset, checkpoint=tmp_path / "tiny.safetensors").num_layers == 4
    monkeypatch.setenv("L2C_CHECKPOINTS", str(tmp_path))
    assert find_checkpoint("tiny.safetensors", name="tiny") == tmp_path / "tiny.safetensors"
    assert torch.equal(l2c.load_backbone(preset).pos_embed, make_dit().pos_embed)


def test_a_folder_of_checkpoints_that_is_not_there_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("L2C_CHECKPOINTS", str(tmp_path / "nowhere"))
    found = find_checkpoint("dit_digits.safetensors", name="dit_digits")
    (said,) = caplog.messages
    folder = found.absolute().parent
    assert f"that is not there, {tmp_path / 'nowhere'}; dit_digits.safetensors comes from {folder}" in said


def test_loaded_backbones_are_frozen(preset):
    net = l2c.load_backbone(preset, checkpoint="random")
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert net.conventions.name == "tiny"


def test_wrong_keys_are_named(make_dit):
    net = make_dit()
    weights = net.state_dict()
    for key in ("blocks.1.attn.qkv.weight", "pos_embed"):
        del weights[key]
    weights["blocks.2.extra"] = torch.zeros(1)
    weights["x_embedder.proj.bias"] = torch.zeros(7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_strict(net, weights, "file.pt")
    message = str(caught.value)
    assert "file.pt does not fit DiT" in message
    assert "2 missing (pos_embed, blocks.1.attn.qkv.weight)" in message
    assert "1 unexpected (blocks.2.extra)" in message
    assert "1 of another shape (x_embedder.proj.bias (7,) for (32,))" in message
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_many_wrong_keys_are_counted(make_dit, make_uvit):
    with pytest.raises(ValueError, match=r"\d+ missing \(.*, .*, .* and \d+ more\)"):
        load_strict(make_dit(), make_uvit().state_dict(), "file.pt")
    with pytest.raises(ValueError, match=r"missing .*blocks.2"):
        load_strict(make_dit(depth=3), make_dit(depth=2).state_dict(), "file.pt")


LAYOUTS = [
    *("plain", "ema", "model", "state_dict", "training"),
    *("model_ema", "ema_model", "params", "shadow", "lightning"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_checkpoints(make_dit, tmp_path, layout):
    weights, other = make_dit(seed=0).state_dict(), make_dit(seed=1).state_dict()
    content = {
        "plain": weights,
        "ema": {"model": other, "ema": weights, "opt": {"state": {}, "param_groups": []}},
        "model": {"model": weights},
        "state_dict": {"state_dict": weights},
        # What DiT's train.py writes: its command line travels along.
        "training": {"model": other, "ema": weights, "opt": {}, "args": argparse.Namespace(model="DiT-XL/2")},
        "model_ema": {"model": other, "model_ema": weights},
        "ema_model": {"ema_model": weights, "state_dict": other},
        "params": {"params": weights},
        "shadow": {"ema": {"decay": 0.999, "shadow": weights}, "model": other},
        "lightning": {"epoch": 3, "state_dict": {"module": weights}},
    }[layout]
    torch.save(content, tmp_path / "weights.pt")
    loaded = load_weights(tmp_path / "weights.pt")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "model.backbone.module."]
)
def test_prefixes_of_wrappers_are_taken_off(preset, make_dit, tmp_path, prefix):
    weights = make_dit().state_dict()
    torch.save({"ema": {f"{prefix}{key}": value for key, value in weights.items()}}, tmp_path / "weights.pt")
    net = l2c.load_backbone(preset, checkpoint=tmp_path / "weights.pt")
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_other_prefixes_are_named_and_shared_ones_stay_where_they_belong(make_dit):
    net = make_dit()
    with pytest.raises(ValueError, match=r"all its keys begin with 'unet\.inner\.': save the module below that name"):
        load_strict(net, {f"unet.inner.{key}": value for key, value in net.state_dict().items()}, "file.pt")
    wrapped = torch.nn.ModuleDict({"model": make_dit(seed=1)})
    load_strict(wrapped, {f"model.{key}": value for key, value in net.state_dict().items()}, "file.pt")
    assert torch.equal(wrapped["model"].pos_embed, net.pos_embed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(make_dit, value):
    net = make_dit()
    weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    weights["blocks.1.mlp.fc1.weight"][0, 0] = value
    with pytest.raises(ValueError, match=r"file.pt holds numbers that are not finite in blocks.1.mlp.fc1.weight"):
        load_strict(net, weights, "file.pt")
    assert net.blocks[1].mlp.fc1.weight.isfinite().all()


def test_half_precision_safetensors_load_into_fp32(preset, make_dit, tmp_path):
    weights = make_dit().state_dict()
    path = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in weights.items()}, path)
    net = l2c.load_backbone(preset, checkpoint=path)
    for name, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].half().float())


def test_damaged_and_foreign_files_are_refused(make_dit, tmp_path):
    for name, content in (("a.safetensors", b"{}"), ("b.pt", b"PK\x03\x04"), ("c.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read weights from .*{name}") as caught:
            load_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save(make_dit(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"cannot read weights from .*holds Python objects"):
        load_weights(tmp_path / "module.pt")
    for content in ([torch.zeros(2)], {"lr": 0.1}):
        torch.save(content, tmp_path / "list.pt")
        with pytest.raises(ValueError, match="holds no state dict of tensors"):
            load_weights(tmp_path / "list.pt")


# --- fingerprints -------------------------------------------------------------------------------------------


def test_fingerprint_follows_the_weights(make_dit):
    net, same, other = make_dit(seed=0), make_dit(seed=0), make_dit(seed=1)
    assert fingerprint(net) == fingerprint(same)
    assert fingerprint(net) != fingerprint(other)
    assert fingerprint(net).startswith("sha256:")
    assert len(fingerprint(net)) == 7 + 64
    before = fingerprint(net)
    net.load_state_dict(other.state_dict())
    assert fingerprint(net) == fingerprint(other) != before
    weights = same.state_dict()
    weights["blocks.1.mlp.fc2.bias"] = weights["blocks.1.mlp.fc2.bias"] + 1e-6
    net.load_state_dict(weights)
    assert fingerprint(net) != before


def test_fingerprint_is_reset_when_a_larger_module_loads(make_dit):
    net, other = make_dit(seed=0), make_dit(seed=1)
    wrapped = torch.nn.ModuleDict({"backbone": net})
    before = fingerprint(net)
    wrapped.load_state_dict({f"backbone.{name}": value for name, value in other.state_dict().items()})
    assert fingerprint(net) == fingerprint(other) != before


def test_fingerprint_does_not_depend_on_when_the_weights_were_cast(make_dit):
    """A graph made in 32 bits is for these weights, also when they are run in 16."""
    asked_before, asked_after = make_dit(), make_dit()
    fingerprint(asked_before)
    assert fingerprint(asked_before.bfloat16()) == fingerprint(asked_after.bfloat16())


def test_copies_have_fingerprints_of_their_own(make_dit):
    net, other = make_dit(seed=0), make_dit(seed=1)
    before = fingerprint(net)
    duplicate = copy.deepcopy(net)
    duplicate.load_state_dict(other.state_dict())
    assert fingerprint(duplicate) == fingerprint(other)
    assert fingerprint(net) == before
