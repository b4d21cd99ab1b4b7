"""Acceleration in one call: calibrated once, found on disk after, applied both times."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

import diffusers
from PIL import Image
from tiny_pipelines import tiny_pipeline
from transformers import CLIPImageProcessor
from without_backward import WithoutBackward
from wrong_arguments import WRONG, check_sentence

import l2c
from l2c.integrations.diffusers import remove
from l2c.integrations.diffusers.placing import exchange, hooks_on, root_of
from l2c.integrations.diffusers.recorded import own_call
from l2c.integrations.diffusers.recorded.contents import content_of
from l2c.io.version import code_version
from l2c.pipelines import acceleration, asked


@pytest.fixture
def pipe():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3, sample_size=8
        )
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8)
    scheduler = diffusers.DDIMScheduler()
    pipe = diffusers.DiTPipeline(transformer=transformer.eval(), vae=vae, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(pipe, steps=5):
    generator = torch.Generator().manual_seed(0)
    return pipe([3], num_inference_steps=steps, guidance_scale=2.0, generator=generator, output_type="np").images


def accelerated(pipe, folder, **changes):
    options = {"budget": 0.5, "num_inference_steps": 5, "guidance_scale": 2.0, "num_trajectories": 2, **changes}
    return acceleration.accelerate(pipe, [1, 3], folder=folder, **options)


def error_of_own_call(pipe):
    """Return in percent how far the last step of the first prompt is from where it ends without the graph."""

    def last():
        made, step = [], pipe.scheduler.step

        def record(*args, **kwargs):
            made.append(step(*args, **kwargs))
            return made[-1]

        pipe.scheduler.step = record
        generator = torch.Generator().manual_seed(0)
        pipe([1], num_inference_steps=5, guidance_scale=2.0, generator=generator)
        del pipe.scheduler.step
        return made[-1].prev_sample

    cached, graph = last(), root_of(pipe.transformer)
    assert graph is not None
    hooks = hooks_on(pipe.transformer)
    remove(pipe)
    plain = last()
    exchange({pipe.transformer: hooks})
    return 100 * float((cached - plain).norm() / plain.norm())


def test_what_cannot_be_measured_in_a_call_of_the_pipeline_is_said(pipe, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise ValueError("no such call")

    monkeypatch.setattr(own_call, "last_sample", refuse)
    accelerated(pipe, tmp_path, policy="interval")
    assert "; a call of the pipeline itself could not be measured: no such call\n" in capsys.readouterr().out
    assert root_of(pipe.transformer) is not None


def test_calibrated_once_and_found_after(pipe, tmp_path, capsys, monkeypatch):
    plain = image(pipe)
    graph = accelerated(pipe, tmp_path)
    note = capsys.readouterr().out
    assert note.startswith("gram: ")
    assert "50 % of the denoiser's MACs are left\nlatents of the same noise differ by " in note
    assert graph.num_evaluations == 5
    own = float(re.search(r"4 new noises\), in a call of the pipeline itself by (\d+\.\d) %\n", note)[1])
    assert own == pytest.approx(error_of_own_call(pipe), abs=0.06)
    cached = image(pipe)
    assert not (cached == plain).all()

    monkeypatch.setattr(acceleration, "_make", None)  # nothing is calibrated again
    assert accelerated(pipe, tmp_path) == graph
    assert capsys.readouterr().out == note
    assert (image(pipe) == cached).all()
    remove(pipe)
    assert (image(pipe) == plain).all()


def test_networks_train_and_have_gradients_as_before(pipe, tmp_path):
    pipe.transformer.train().requires_grad_(True)
    pipe.transformer.transformer_blocks[1].eval()
    pipe.transformer.transformer_blocks[0].ff.requires_grad_(False)

    def modes():
        model = pipe.transformer
        return [m.training for m in model.modules()], [weight.requires_grad for weight in model.parameters()]

    before = modes()
    accelerated(pipe, tmp_path, policy="block_caching", num_trajectories=1)
    remove(pipe)
    assert modes() == before
    assert all(len(set(each)) == 2 for each in before)


def test_calls_with_other_steps_get_graphs_of_their_own_from_gram_alone(pipe, tmp_path):
    plain = image(pipe, 7)
    graph = accelerated(pipe, tmp_path)
    cached = image(pipe, 7)
    assert not (cached == plain).all()
    (path,) = tmp_path.rglob("*.safetensors")
    remove(pipe)
    with l2c.applied(pipe, graph), pytest.raises(ValueError, match="made for num_evaluations 5, got 7"):
        image(pipe, 7)
    with l2c.applied(pipe, l2c.Calibration.load(path), budget=0.5):
        assert (image(pipe, 7) == cached).all()
    accelerated(pipe, tmp_path, policy="block_caching")
    with pytest.raises(ValueError, match="made for num_evaluations 5, got 7"):
        image(pipe, 7)


def test_other_weights_or_settings_are_calibrated_anew(pipe, tmp_path, monkeypatch, capsys):
    accelerated(pipe, tmp_path, policy="interval")
    (before,) = tmp_path.iterdir()
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].ff.net[2].weight.mul_(1.01)
    accelerated(pipe, tmp_path, policy="interval")
    assert len(list(tmp_path.iterdir())) == 2
    calls = []
    measure = l2c.Calibration.measure
    monkeypatch.setattr(l2c.Calibration, "measure", lambda *a, **k: calls.append(1) or measure(*a, **k))
    accelerated(pipe, tmp_path, policy="block_caching")
    accelerated(pipe, tmp_path, policy="block_caching", budget=0.7)  # from the same calibration
    assert calls == [1]
    assert before.is_dir()
    count = len(list(tmp_path.iterdir()))
    assert "made again" not in capsys.readouterr().out  # other weights and settings say it themselves
    monkeypatch.setattr(acceleration, "code_version", lambda: "0.1.0, code of another commit")
    accelerated(pipe, tmp_path, policy="interval")
    assert len(list(tmp_path.iterdir())) == count + 1
    assert f"is by l2c {code_version()}, calibrations" in (said := capsys.readouterr().out)
    assert said.startswith("made again: ")
    assert "this is 0.1.0, code of another commit, calibrations of version" in said
    accelerated(pipe, tmp_path, policy="interval")
    assert "made again" not in capsys.readouterr().out


@pytest.mark.parametrize(("given", "probes"), [({}, 8), ({"num_probes": 2}, 2)])
def test_the_calibration_that_is_kept_knows_its_probes(given, probes, pipe, tmp_path):
    graph = accelerated(pipe, tmp_path, num_trajectories=4, **given)
    (path,) = tmp_path.rglob("*.safetensors")
    kept = l2c.Calibration.load(path)
    assert kept.settings["responses"]["num_probes"] == probes
    assert kept.tensor("responses").shape[3] == 4 * probes
    assert 0 < graph.measured["expected_mse_standard_error"] <= graph.measured["expected_mse"]  # of four trajectories


class OpaqueScheduler(diffusers.DDIMScheduler):
    step = torch.no_grad()(diffusers.DDIMScheduler.step)


def without_gradients(pipe, kind):
    """Take a pipeline's backward pass away: in a layer, in its scheduler, or by a layer whose memory runs out."""
    if kind == "scheduler":
        pipe.scheduler = OpaqueScheduler()
        return

    def hook(module, args, output):
        if kind == "memory" and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return WithoutBackward.apply(output)

    pipe.transformer.transformer_blocks[1].ff.register_forward_hook(hook)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("layer", "passes no gradient from its output to its layers"),
        ("scheduler", "but OpaqueScheduler passes no gradient on"),
        ("memory", "CUDA out of memory"),
    ],
)
def test_forward_passes_on_the_whole_output_where_there_are_no_gradients(kind, reason, pipe, tmp_path, capsys):
    without_gradients(pipe, kind)
    plain, longer = image(pipe), image(pipe, 9)
    graph = accelerated(pipe, tmp_path)
    note = capsys.readouterr().out
    assert note.startswith("calibrated by forward passes, for graphs of the whole output: ")
    assert reason in note
    assert "evaluations reuse the whole output; 40 % of the denoiser's MACs are left" in note
    assert (graph.layers, graph.provenance["method"], graph.num_reused) == (("output",), "gram", 3)
    error = ((image(pipe) - plain) ** 2).mean()
    assert 0 < error < ((image(pipe, 9) - longer) ** 2).mean() * 100  # other steps have a graph, too
    assert accelerated(pipe, tmp_path) == graph
    capsys.readouterr()
    accelerated(pipe, tmp_path, budget=0.8)  # from the calibration that is there, and why it is this one
    assert reason in capsys.readouterr().out
    remove(pipe)
    assert (image(pipe) == plain).all()
    with pytest.raises((ValueError, torch.OutOfMemoryError), match=reason):
        accelerated(pipe, tmp_path / "blocks", layers="block", policy="gram")


def test_block_caching_where_the_scheduler_adds_noise(pipe, tmp_path):
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    graph = accelerated(pipe, tmp_path)
    assert graph.provenance["method"] == "block_caching"


def test_pictures_in_options_are_known_by_what_they_show():
    def name(colour):
        picture = Image.new("RGB", (64, 64), colour)
        tensor = torch.zeros(1, 3, 64, 64) + (colour == "blue") * torch.eye(64)
        return content_of("options", {"image": [picture], "mask": tensor, "strength": 0.5})

    assert name("red") == name("red") != name("blue")
    assert len({str(name(colour)["mask"]) for colour in ("red", "blue")}) == 2
    assert name("red")["strength"] == 0.5


@dataclass
class Condition:
    """As LTXVideoCondition: no argument of it says which picture it holds."""

    image: Image.Image
    frame: int = 0


class InSlots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def test_objects_are_known_by_what_they_hold():
    def name(value):
        return json.dumps(content_of("options", {"conditions": [value]}), sort_keys=True)

    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    assert name(Condition(red)) == name(Condition(red.copy())) != name(Condition(blue))
    assert name(Condition(red)) != name(Condition(red, 1))
    assert name(InSlots(3)) == name(InSlots(3)) != name(InSlots(4))
    objects = np.array([red, None, {"a", "b"}], dtype=object)
    assert name(objects) == name(objects.copy()) != name(np.array([blue, None, {"a", "b"}], dtype=object))
    assert name(np.float32(2)) == name(2.0)
    for unknown in (lambda: 0, object()):
        with pytest.raises(ValueError, match=r"options holds '(function|object)', which nothing tells from others"):
            name(unknown)
    circle = Condition(red)
    circle.image = circle
    with pytest.raises(ValueError, match="options holds members that lie 64 levels deep, or in a circle"):
        name(circle)


KEY = """
import sys
sys.path += ["tests", "tests/pipelines", "benchmarks"]
from l2c.io.torchvision_stand_in import make_importable
make_importable()
from tiny_pipelines import tiny_pipeline
from test_acceleration import key_of
print(key_of(tiny_pipeline("sd_controlnet")))
"""


def key_of(tiny):
    """Return the key of a pipeline whose scheduler was loaded from few settings."""
    tiny.pipe.scheduler = type(tiny.pipe.scheduler).from_config({"beta_schedule": "scaled_linear"})
    options = {name: value for name, value in tiny.options.items() if name != "output_type"}
    given = asked.Asked.of(tiny.pipe, list(tiny.prompts), 4, tiny.scale, None, options, 2, 8, 0, None)
    return given.key(tiny.pipe)


def test_another_process_finds_what_was_kept(call_process):
    """The settings that a scheduler was not given are in a list that was made of a set, in any order."""
    tiny = tiny_pipeline("sd_controlnet")
    here = key_of(tiny)
    assert len(tiny.pipe.scheduler.config["_use_default_values"]) > 5
    there = call_process("-c", KEY, PYTHONHASHSEED="1")
    assert there.stdout.split()[-1:] == [here], there.stderr


@pytest.mark.parametrize(
    "part", ["controlnet", "text_encoder", "freeu", "scheduler", "tokenizer", "processor", "nothing", "switched off"]
)
def test_what_runs_beside_the_model_belongs_to_the_key(part):
    tiny = tiny_pipeline("sd_controlnet")
    tiny.pipe.feature_extractor = CLIPImageProcessor()
    before = key_of(tiny)
    if part == "freeu":
        tiny.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    elif part == "tokenizer":
        tiny.pipe.tokenizer.add_tokens("<cat>")
    elif part == "processor":
        tiny.pipe.feature_extractor.do_resize = False
    elif part == "nothing":
        tiny.pipe.encode_prompt("cat", "cpu", 1, False)  # which leaves the tokenizer's padding behind
        tiny.pipe.tokenizer.padding_side = tiny.pipe.tokenizer.truncation_side = "left"  # as pipelines do in a call
    elif part == "scheduler":
        tiny.pipe.scheduler = diffusers.EulerDiscreteScheduler()
    elif part == "switched off":
        tiny.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        tiny.pipe.disable_freeu()
        tiny.pipe.unet.train()
    else:
        with torch.no_grad():
            next(getattr(tiny.pipe, part).parameters()).mul_(1.5)
    assert (key_of(tiny) == before) is (part in ("nothing", "switched off"))


def test_the_number_of_steps_is_asked_for_where_there_is_none(pipe):
    assert asked._steps(pipe, None) == 50
    kind = type(pipe)
    without = type("Without", (kind,), {"__call__": lambda self, class_labels: None})(**pipe.components)
    with pytest.raises(ValueError, match="Without takes no num_inference_steps"):
        asked._steps(without, 5)
    none = type("Unset", (kind,), {"__call__": lambda self, class_labels, num_inference_steps=None: None})
    with pytest.raises(ValueError, match="Unset has no number of steps of its own; give num_inference_steps"):
        asked._steps(none(**pipe.components), None)


def test_bad_input_is_one_sentence(pipe, tmp_path):
    (tmp_path / "gap.txt").write_text("1\n\n3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of the prompt file .*gap.txt is empty"):
        acceleration.accelerate(pipe, tmp_path / "gap.txt", folder=tmp_path)
    (tmp_path / "latin.txt").write_bytes("stra\xdfe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 \(byte 4\)"):
        acceleration.accelerate(pipe, str(tmp_path / "latin.txt"), folder=tmp_path)
    with pytest.raises(ValueError, match="unknown policy 'magic'"):
        accelerated(pipe, tmp_path, policy="magic")
    for wrong, sentence in (
        ({"num_inference_steps": "20"}, "num_inference_steps must be a whole number in [2, 4096], got '20'"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a finite number in [-1000, 1000], got nan"),
        ({"num_trajectories": 0}, "num_trajectories must be a whole number in [1, 1000000], got 0"),
        ({"seed": None}, "seed must be a whole number in [0, "),
        ({"num_inference_steps": 10**9}, "num_inference_steps must be a whole number in [2, 4096], got 1000000000"),
        ({"layers": []}, "layers is empty; give one of layer, block, resnet, output at least, or None for the usual"),
        ({"layers": ["output", "block"]}, "layers of kind output stand alone, got output, block; say [output]"),
        ({"options": [8]}, "options must be values by name, got list"),
        ({"prompts": 5}, "prompts must be a list, got 5"),
        ({"budget": True}, "a budget is a share"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            acceleration.accelerate(pipe, **wrong)
    words = r"accelerate has no argument 'sharpness'; known are .*; arguments of the pipeline's own call go into"
    with pytest.raises(TypeError, match=words):
        acceleration.accelerate(pipe, sharpness=8)
    with pytest.raises(ValueError, match="graphs must be cache graphs by the name of a denoiser, got 'x' for 'unet'"):
        l2c.apply(pipe, {"unet": "x"})
    with pytest.raises(ValueError, match="any_weights must be True or False, got 'no'"):
        l2c.apply(pipe, {}, any_weights="no")
    assert isinstance(accelerated(pipe, tmp_path, policy="late_first"), l2c.CacheGraph)


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (["a cat"], "'a cat' is no class label; this pipeline takes 0..999"),
        ([5000], "5000 is no class label"),
        ([], "prompts is empty"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(pipe, prompts, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        acceleration.accelerate(pipe, prompts, folder=tmp_path)


def test_a_budget_of_more_than_all_is_refused_before_the_calibration(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(l2c.Calibration, "measure", None)
    with pytest.raises(ValueError, match=r"a budget of 6 evaluations' worth of MACs is out of reach.* 0\.00\.\.5"):
        accelerated(pipe, tmp_path, budget=6)


def test_what_is_no_pipeline_and_no_graph_is_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match="str has neither a transformer nor a unet"):
        acceleration.accelerate("a name", [1], folder=tmp_path)
    with pytest.raises(ValueError, match=r"graph must be a cache graph, a path .* a ladder, got int"):
        l2c.apply(pipe, 3)


def test_the_graph_before_stays_where_no_other_is_found(pipe, tmp_path):
    accelerated(pipe, tmp_path)
    before, cached = root_of(pipe.transformer), image(pipe)
    with pytest.raises(ValueError, match="budget"):
        accelerated(pipe, tmp_path, budget=0.01)
    assert root_of(pipe.transformer) is before
    assert (image(pipe) == cached).all()


def test_a_graph_is_applied_by_its_path(pipe, tmp_path):
    graph = accelerated(pipe, tmp_path)
    cached = image(pipe)
    graph.save(tmp_path / "mine.json")
    remove(pipe)
    l2c.apply(pipe, tmp_path / "mine.json")
    assert (image(pipe) == cached).all()


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"num_inference_steps": 20}, "num_inference_steps="),
        ({"guidance_scale": 3.0}, "guidance_scale="),
        ({"class_labels": [1]}, "prompts="),
        ({"latents": torch.zeros(1)}, "seed="),
        ({"generator": torch.Generator()}, "seed="),
        ({"output_type": "pil"}, "your own calls"),
        ({"num_images_per_prompt": 2}, "your own calls"),
        ({"callback_on_step_end": print}, "your own calls"),
    ],
)
def test_options_that_are_said_beside_are_refused(pipe, options, place, tmp_path):
    with pytest.raises(ValueError, match=f"options holds '{next(iter(options))}', which .*{place}"):
        accelerated(pipe, tmp_path, options=options)


def test_what_cannot_be_kept_is_found_before_the_work(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(acceleration, "_make", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .* choose a folder that you may write to"):
        accelerated(pipe, tmp_path / "file")


@pytest.mark.parametrize("text", ["a red cat", "a red cat " * 50])
def test_a_text_alone_is_no_file_of_prompts(pipe, text, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prompt file at a red cat.* in a list, prompts=\['a red cat"):
        acceleration.accelerate(pipe, text, folder=tmp_path)


def test_no_graphs_are_none(pipe):
    with pytest.raises(ValueError, match="graphs is empty; give a cache graph by the name of each denoiser"):
        l2c.apply(pipe, {})


ACCELERATED = (
    *("pipe", "prompts", "budget", "num_inference_steps", "guidance_scale", "policy", "options", "num_trajectories"),
    *("num_probes", "seed", "layers", "folder"),
)
APPLIED = ("pipe_or_model", "graph", "budget", "resample", "any_weights", "any_adapters", "any_guidance")
RIGHT = {("budget", "huge"), ("guidance_scale", "negative")}  # the first is refused when the steps are known


def test_a_wrong_argument_is_one_sentence(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(acceleration, "_make", None)  # nothing is calibrated before
    assert tuple(inspect.signature(acceleration.accelerate).parameters) == ACCELERATED
    assert tuple(inspect.signature(l2c.apply).parameters) == APPLIED
    right = {"pipe": pipe, "prompts": [1], "folder": tmp_path, "num_inference_steps": 5}
    graph = l2c.CacheGraph.load("dit_digits_ddim20")
    for call, names, given in (
        (acceleration.accelerate, ACCELERATED, right),
        (l2c.apply, APPLIED, {"pipe_or_model": pipe, "graph": graph}),
        (l2c.remove, ("pipe_or_model",), {}),
    ):
        for name in names:
            for what, value in WRONG.items():
                if (name, what) in RIGHT:
                    continue
                with pytest.raises((ValueError, TypeError, OSError)) as caught:
                    call(**{**given, name: value})
                check_sentence(caught.value, f"{call.__name__}({name}={what})")
