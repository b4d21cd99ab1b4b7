"""What no argument may be, in the place of every argument of the public callables: one sentence, of our own."""

import inspect

import numpy as np
import pytest
import torch
from wrong_arguments import WRONG, check_sentence

import l2c
from l2c.backbones.layer_cache import mix
from l2c.diffusion import SOLVERS, FlowSchedule, Guidance, NoiseSchedule, make_solver
from l2c.drawing.run import sample_images
from l2c.evaluation.graph_evaluation import evaluate_samplers
from l2c.graph import hub
from l2c.integrations.cache_dit import export_cache_dit
from l2c.integrations.smoothcache import export_smoothcache, import_smoothcache
from l2c.policies.budget import evaluations_worth
from l2c.policies.context import PolicyContext
from l2c.policies.registry import POLICIES, make_graph
from l2c.policies.settings import OPTIONS
from l2c.sampling.solver_settings import SolverSettings
from l2c.training.corrections.run import train_correction
from l2c.training.corrections.settings import CorrectionSettings
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.routers import Routers
from l2c.training.routers.run import train_routers
from l2c.training.routers.settings import RouterTraining

ARRAYS_FIT = {"labels", "timesteps", "budgets", "input_shape", "rows", "slopes", "weights", "y"}
# What else is right: by the wrong value the arguments that take it.
FITS = {
    "an object": {"trainer"},
    "an empty list": {
        "residual",
        "reuse",
        "slopes",
        "weights",
        "files",
        "num_evaluations of best",
        "given",
        "layers of part",
    },
    "negative": {
        "cfg_scale of CacheGraph",
        "cfg_scale of replace",
        "num_classes of UViT",
        "scale of Guidance",
        "init",
    },
    "huge": {"num_images of cache_bytes", "max_span of graph", "max_span of ladder"},
}
FITS["huge"] |= {"budget of rung", "budget of preferred", "error", "budget of evaluations_worth"}
FITS["huge"] |= {"num_evaluations of evaluations_worth"}


class Net(torch.nn.Module):
    """Three residual convolutions; t enters by its cosine."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))

    def forward(self, x, t, y=None):
        for block in self.blocks:
            x = x + block(x) * torch.cos(t)[:, None, None, None]
        return x


def wrapped(**others):
    """Return such a network as a backbone."""
    return l2c.wrap(**{"module": Net(), "layers": ["blocks.*"], "input_shape": (1, 4, 4), "name": "net", **others})


@pytest.fixture(scope="module")
def callables(tmp_path_factory):
    """Return each callable with arguments that it takes."""
    folder = tmp_path_factory.mktemp("files")
    graph = l2c.CacheGraph.load("dit_digits_ddim20")
    torch.save({f"{i}.prob": torch.zeros(3) for i in range(4)}, folder / "router.pth")
    (folder / "s.json").write_text('{"attn": [1, 0, 1, 0], "mlp": [1, 0, 1, 0]}')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = wrapped()
    sampler = l2c.Sampler(backbone, solver="ddim", num_evaluations=6)
    short = {"num_trajectories": 1, "batch_size": 1, "true_errors": 0}
    both = ["responses", "changes"]
    known = {**short, "num_trajectories": 4, "true_errors": 2}  # errors of its graphs are known
    calibration = l2c.Calibration.measure(sampler, what=both, responses={"num_probes": 1}, **known)
    ladder = calibration.reachable([0.9, 0.7])
    calibration.save(folder / "c.safetensors")
    ladder.save(folder / "l.json")
    l2c.CacheGraphs({"unet": graph}).save(folder / "g.json")
    context = PolicyContext.of(sampler, calibration)
    noise = torch.zeros(1, 1, 4, 4)
    return {
        "wrap": (wrapped, {"timestep": "t", "labels": "y", "num_labels": 3, **dict.fromkeys(WRAP)}),
        "load_backbone": (l2c.load_backbone, {"model": "dit_digits", "checkpoint": "random"}),
        "DiT": (l2c.DiT, {**dict.fromkeys(inspect.signature(l2c.DiT).parameters), **TINY_DIT}),
        "UViT": (l2c.UViT, {**dict.fromkeys(inspect.signature(l2c.UViT).parameters), **TINY_UVIT}),
        "Sampler": (l2c.Sampler, {"backbone": backbone, "solver": "ddim", "num_evaluations": 6, **SAMPLER}),
        "sample": (sampler.sample, {"labels": None, "noise": noise, "seed": 0, "first_image": 0, "progress": False}),
        "cache_bytes": (sampler.cache_bytes, {"num_images": 1}),
        "compile": (sampler.compile, {"num_images": 1, "backend": None, "progress": False}),
        "measure": (l2c.Calibration.measure, {"sampler": sampler, **short, **MEASURE}),
        "graph": (calibration.graph, {"budget": 0.7, **GRAPH}),
        "ladder": (calibration.ladder, {"budgets": [0.7], **GRAPH}),
        "reachable": (calibration.reachable, {"budgets": [0.7], "num_steps": 6}),
        "corrected": (calibration.corrected, {"sampler": sampler, "num_trajectories": 1, "batch_size": 1}),
        "tensor": (calibration.tensor, {"name": "responses"}),
        "Ladder": (l2c.Ladder, {"graphs": list(ladder)}),
        "rung": (ladder.rung, {"budget": 0.9}),
        "within": (ladder.within, {"error": 1.0}),
        "CacheGraph": (l2c.CacheGraph, {name: getattr(graph, name) for name in graph.__dataclass_fields__}),
        "replace": (graph.replace, {"cfg_scale": 1.0}),
        "from_json": (l2c.CacheGraph.from_json, {"text": graph.to_json(), "folder": folder}),
        "blank": (l2c.CacheGraph.blank, {"binding": graph.binding}),
        "removed_fraction_of": (graph.removed_fraction_of, {"kind": "attn"}),
        "save_pretrained": (graph.save_pretrained, {"folder": folder / "hub", "files": []}),
        "push_to_hub": (graph.push_to_hub, PUSHED),
        "from_pretrained": (l2c.CacheGraph.from_pretrained, {"repo": "somebody/graph", "revision": "main"}),
        "mix": (mix, MIXED),
        "import_l2c_router": (l2c.import_l2c_router, {"path": folder / "router.pth", "backbone": backbone, **ROUTER}),
        **{name: (kind, {"num_evaluations": 6, **SOLVER[name]}) for name, kind in SOLVERS.items()},
        "make_solver": (make_solver, {"name": "ddim", "num_evaluations": 6, **SOLVER["ddim"]}),
        "load": (l2c.CacheGraph.load, {"path": "dit_digits_ddim20"}),
        "evaluations_worth": (evaluations_worth, {"budget": 0.5, "num_evaluations": 10}),
        "load_calibration": (l2c.Calibration.load, {"path": folder / "c.safetensors"}),
        "load_ladder": (l2c.Ladder.load, {"path": folder / "l.json"}),
        "load_graphs": (l2c.CacheGraphs.load, {"path": folder / "g.json"}),
        "CacheGraphs": (l2c.CacheGraphs, {"graphs": {"unet": graph}}),
        "WholeOutput": (l2c.WholeOutput, {"network": backbone}),
        "part": (calibration.part, {"layers": ["output"]}),
        "preferred": (calibration.preferred, {"budget": 0.7}),
        "check": (calibration.check, {"graph": ladder[0], "any_times": False}),
        "at": (calibration.at, {"graph": ladder[0], "solver": sampler.solver}),
        "figures": (ladder.figures, {"name": "expected_mse"}),
        "context": (PolicyContext.of, {"sampler": sampler, "calibration": calibration, "weights_bound": True}),
        "make_graph": (make_graph, {"name": "interval", "context": context, "n": 2}),
        "import_smoothcache": (
            import_smoothcache,
            {"path": folder / "s.json", "backbone": "dit_digits", "solver": "ddim", "routed": None},
        ),
        "export_smoothcache": (export_smoothcache, {"graph": graph, "path": folder / "out.json"}),
        "export_cache_dit": (export_cache_dit, {"graph": graph, "path": folder / "out.json", "share": 0.5}),
        "Guidance": (Guidance, {"mode": "cfg", "scale": 2.0}),
        "NoiseSchedule": (NoiseSchedule, {"name": "cosine", "given": None, **SCHEDULE}),
        "FlowSchedule": (FlowSchedule, {"name": "flow", **SCHEDULE}),
        "sample_images": (sample_images, {"sampler": sampler, "folder": folder / "images", **DRAWN}),
        "evaluate_samplers": (
            evaluate_samplers,
            {"samplers": {"uncached": [sampler]}, "cost": context.cost, "num_images": 2, "seed": 0, **EVALUATED},
        ),
        "train_routers": (
            train_routers,
            {
                "backbone": backbone,
                "settings": RouterTraining(solver=SolverSettings(name="ddim", num_evaluations=4)),
                "folder": folder / "run",
                **dict.fromkeys(("images", "objective", "any_weights", "config")),
            },
        ),
        "RouterTraining": (
            RouterTraining,
            {"solver": SolverSettings(name="ddim", num_evaluations=4), **dict.fromkeys(TRAINING)},
        ),
        "Routers": (Routers, {"evaluations": [1, 3], "num_layers": 3, "init": 2.0, "seed": 0}),
        "LearningToCache": (
            LearningToCache,
            {"backbone": backbone, "penalty": 0.1, "layer_weights": torch.ones(3), **dict.fromkeys(OBJECTIVE)},
        ),
        "train_correction": (
            train_correction,
            {"graph": graph, "sampler": sampler, "settings": CorrectionSettings(), "folder": folder / "run"},
        ),
        **{
            f"policy {name}": (call, {"context": context, "budget": 0.7, **dict.fromkeys(OPTIONS[name])})
            for name, call in POLICIES.items()
        },
    }


PUSHED = {"repo": "somebody/graph", "files": [], "private": False, "token": "hf_a"}
MIXED = {"fresh": torch.tensor(0.5), "compute": lambda: torch.ones(2, 3, 4), "cached": torch.ones(2, 3, 4)}
TINY_DIT = {"input_size": 8, "patch_size": 4, "in_channels": 1, "hidden_size": 8, "depth": 2, "num_heads": 2}
TINY_UVIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2}
# The arguments that may be left out; None stands for that here.
WRAP = (
    *("module", "layers", "null_label", "input_shape", "residual", "name", "schedule", "first_timestep", "guidance"),
    "prediction",
)
SAMPLER = dict.fromkeys(
    (
        *("graph", "cfg_scale", "eta", "solver_options", "any_weights", "any_guidance", "precision", "matmul"),
        *("cache_dtype", "cache_device"),
    )
)
MEASURE = dict.fromkeys(("what", "seed", "changes", "responses"))
GRAPH = dict.fromkeys(
    (
        *("num_steps", "timesteps", "solver", "solver_options", "max_span", "whole_outputs", "sampler"),
        "batch_size",
    )
)
SOLVER = {
    **{key: {"schedule": NoiseSchedule("linear")} for key in ("ddpm", "dpm_solver_2s", "dpm_solver_2m")},
    **{key: {"schedule": FlowSchedule("flow"), "shift": 2.0} for key in ("flow_euler", "flow_dpm_2m")},
    "ddim": {"schedule": NoiseSchedule("linear"), "eta": 0.5},
}
SCHEDULE = dict.fromkeys(("first_timestep", "num_steps", "prediction"))
DRAWN = {"num_images": 1, "batch_size": 1, "trainer": {"accelerator": "cpu"}}
DRAWN |= dict.fromkeys(("seed", "labels", "shard_size", "vae_name", "settings"))
EVALUATED = {"batch_size": 1, "timing_batch": 1, "timing_repetitions": 1}
OBJECTIVE = ("error", "threshold", "straight_through")
TRAINING = (
    *("router", "data", "trainer", "logger", "seed", "resume", "recompute_activations"),
    *("checkpoint_every_n_steps", "heatmap_every_n_steps"),
)
ROUTER = {"solver": "ddim", "num_evaluations": 4, "threshold": 0.1}
NAMES = (
    *("wrap", "load_backbone", "DiT", "UViT", "Sampler", "sample", "cache_bytes", "compile", "measure", "graph"),
    *("ladder", "reachable", "corrected", "tensor", "Ladder", "rung", "within", "CacheGraph", "replace", "from_json"),
    *("blank", "removed_fraction_of", "save_pretrained", "import_l2c_router"),
    *("make_solver", "load", "evaluations_worth", *SOLVERS),
)
BESIDE = (
    *("load_calibration", "load_ladder", "load_graphs", "CacheGraphs", "WholeOutput", "part", "preferred", "check"),
    *("at", "figures", "context", "make_graph", "import_smoothcache", "export_smoothcache", "export_cache_dit"),
    *("Guidance", "NoiseSchedule", "FlowSchedule", "sample_images", "evaluate_samplers", "train_routers"),
    *("push_to_hub", "from_pretrained", "mix"),
    *("RouterTraining", "Routers", "LearningToCache", "train_correction", *(f"policy {name}" for name in OPTIONS)),
)
# Arguments that a test of their own looks at, or that are objects of any kind.
OTHERS = {"remedy", "others", "changes", "options", "store", "vae", "classifier", "advance"}


@pytest.mark.parametrize("name", [*NAMES, *BESIDE])
def test_every_argument_is_tried(name, callables):
    call, right = callables[name]
    parameters = inspect.signature(call).parameters
    untried = set(parameters) - OTHERS - {*right, "self"}
    assert untried <= ({"settings"} if name == "measure" else set())


@pytest.mark.parametrize("name", [*NAMES, *BESIDE])
def test_a_wrong_argument_is_one_sentence(name, callables, monkeypatch):
    monkeypatch.setattr(hub, "_hub", lambda: pytest.fail("the Hub was asked"))
    call, right = callables[name]
    given = {key: value for key, value in right.items() if value is not None}
    for key in right:
        for what, value in WRONG.items():
            if what in ("an array", "a tensor", "nested") and key in ARRAYS_FIT:
                continue
            if FITS.get(what, set()) & {key, f"{key} of {name.removeprefix('policy ')}"}:
                continue
            with pytest.raises((ValueError, TypeError, OSError)) as caught:
                call(**{**given, key: value})
            check_sentence(caught.value, f"{name}({key}={what})")


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_numpy_and_torch_are_taken(name, callables):
    call, right = callables[name]
    given = {key: value for key, value in right.items() if value is not None}
    numbers = {key: value for key, value in given.items() if type(value) in (int, float, bool)}
    made = call(**given) if numbers else None
    for key, value in numbers.items():
        kinds = (np.asarray(value), torch.tensor(value), np.asarray(value)[()])
        for kind in (*kinds, np.float16(value)) if type(value) is float else kinds:
            assert type(call(**{**given, key: kind})) is type(made), (key, kind)


@pytest.mark.parametrize("flag", ["any_weights", "any_guidance"])
def test_a_text_is_no_truth_value(flag, callables):
    call, right = callables["Sampler"]
    given = {key: value for key, value in right.items() if value is not None}
    with pytest.raises(ValueError, match=f"{flag} must be True or False, got 'false'"):
        call(**given, **{flag: "false"})


def test_an_unknown_argument_names_the_near_ones(callables):
    sampler, right = callables["Sampler"]
    with pytest.raises(TypeError, match=r"^Sampler has no argument 'cfgscale'; did you mean cfg_scale\?$"):
        sampler(right["backbone"], cfgscale=3)
    with pytest.raises(TypeError, match=r"^load_backbone has no argument 'checkpoints'; did you mean checkpoint\?$"):
        l2c.load_backbone("dit_digits", checkpoints="random")
    with pytest.raises(TypeError, match=r"^measure has no argument 'trajectories'; did you mean num_trajectories"):
        callables["measure"][0](callables["measure"][1]["sampler"], trajectories=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_labels": 3}, "num_labels and null_label need labels="),
        ({"null_label": 3}, "num_labels and null_label need labels="),
        ({"labels": "y"}, "a module with labels has at least one; say num_labels="),
        ({"schedule": "sigmoid"}, "unknown noise schedule 'sigmoid'"),
        ({"guidance": "apg"}, "unknown guidance 'apg'"),
        ({"prediction": "x0"}, "unknown prediction 'x0'"),
        ({"input_shape": (1, 0, 4)}, "a side of input_shape must be a whole number of at least 1, got 0"),
        ({"layers": "blocks.*"}, "patterns of layers must be a list, got 'blocks"),
    ],
)
def test_what_a_wrapped_module_cannot_be_is_said_when_it_is_wrapped(arguments, words):
    with pytest.raises(ValueError, match=words):
        wrapped(**arguments)


def test_numbers_that_count_nothing_are_not_left_out(callables):
    call, right = callables["graph"]
    for name in ("num_steps", "max_span"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number .*, got 0"):
            call(right["budget"], **{name: 0})
    with pytest.raises(ValueError, match=r"budgets must be a list, got '0.5'"):
        callables["ladder"][0]("0.5")


def test_a_file_that_never_ends_is_not_copied_beside_a_graph(tmp_path):
    graph = l2c.CacheGraph.load("dit_digits_ddim20")
    with pytest.raises(FileNotFoundError, match="no file at /dev/zero; give the path of a plain file"):
        graph.save_pretrained(tmp_path / "hub", files=["/dev/zero"])
    own = tmp_path / "hub" / "notes.txt"
    own.parent.mkdir()
    own.write_text("kept")
    graph.save_pretrained(own.parent, files=[own])
    assert own.read_text() == "kept"


@pytest.mark.parametrize(("function", "missing"), [(PolicyContext.of, "sampler"), (Routers, "evaluations")])
def test_a_missing_argument_is_told_with_the_name_of_its_function(function, missing):
    with pytest.raises(TypeError, match=rf"\w+\(\) missing .* '{missing}'"):
        function()
