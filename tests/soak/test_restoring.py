"""Checkpoints of which parts were changed and sealed again: refused in one sentence, or the same result."""

from __future__ import annotations

import copy
import io
import random

import pytest
import torch
from mutations import VALUES as PLAIN
from mutations import mutated, places
from safetensors.torch import load_file

from l2c.sampling.solver_settings import SolverSettings
from l2c.testbeds.backbone_run import train_backbone
from l2c.testbeds.digits_data import DigitsDataModule
from l2c.testbeds.settings import BackboneTraining
from l2c.training.checkpoints import RUN, _marked
from l2c.training.corrections.run import train_correction, uncached_sampler
from l2c.training.corrections.settings import CorrectionSettings
from l2c.training.routers.run import train_routers
from l2c.training.routers.settings import BudgetSettings, NoiseSettings, RouterTraining
from l2c.training.settings import TrainerSettings

KINDS = ("routers", "backbone", "muon", "correction")
NAN, INF = torch.tensor(float("nan")), torch.tensor(float("inf"))
TENSORS = (NAN, torch.zeros(3), torch.zeros(()), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2).to_sparse())
VALUES = (*PLAIN, *TENSORS)


@pytest.fixture(scope="module")
def trainings(make_dit, make_graph):
    """Return by name the functions that train for some steps in a folder and return what was trained."""

    def routers(folder, steps, resume=None, parts=1, precision="32-true"):
        settings = RouterTraining(
            solver=SolverSettings(name="ddim", num_evaluations=4, cfg_scale=1.5),
            router=BudgetSettings(budget=0.8),
            data=NoiseSettings(batch_size=2),
            trainer=TrainerSettings(
                accelerator="cpu", max_steps=steps, accumulate_grad_batches=parts, precision=precision
            ),
            checkpoint_every_n_steps=1,
            resume=resume,
        )
        train_routers(make_dit(), settings, folder)
        return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]

    def backbone(folder, steps, resume=None, optimizer="adamw"):
        torch.manual_seed(0)
        net = make_dit(in_channels=1, num_classes=10).train().requires_grad_(True)
        settings = BackboneTraining(
            max_steps=steps, batch_size=2, optimizer=optimizer, decay_share=1e-3, warmup_steps=1, resume=resume
        )
        return load_file(train_backbone(net, DigitsDataModule(2, 0), settings, folder))

    def muon(folder, steps, resume=None):
        return backbone(folder, steps, resume, "muon")

    def correction(folder, steps, resume=None):
        net = make_dit()
        graph = make_graph(net, num_evaluations=4)
        settings = CorrectionSettings(max_steps=2, batch_size=1, accelerator="cpu", resume=resume)
        train_correction(graph, uncached_sampler(net, graph), settings, folder)
        return load_file(folder / "cache_graph.safetensors")

    return {"routers": routers, "backbone": backbone, "muon": muon, "correction": correction}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, trainings, tmp_path_factory):
    """Return a training, the content of its checkpoint after two steps, and what it has trained after four."""
    train, folder = trainings[request.param], tmp_path_factory.mktemp(request.param)
    train(folder, 2)
    content = torch.load(folder / "last.ckpt", weights_only=True)
    return train, content, train(folder, 4, resume="auto")


def changed(content, path, value):
    """Return a content with another value at a path; `...` leaves it out."""
    other = copy.deepcopy(content)
    target = other
    for name in path[:-1]:
        target = target[name]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return other


def sentence_or_right(kind, content, folder):
    """Resume from a content; return the sentence of its refusal, or None where the result is the right one."""
    train, _, expected = kind
    folder.mkdir()
    given = folder.with_name(f"{folder.name}_given") / "from.ckpt"
    given.parent.mkdir()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    given.write_bytes(_marked(buffer.getvalue()))
    try:
        found = train(folder, 4, resume=str(given))
    except ValueError as error:
        said = str(error)
        assert "from.ckpt" in said, said
        assert said.isprintable(), said
        assert len(said) < 900, said
        assert not list(folder.iterdir()), said  # nothing was begun
        return said
    wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not wrong, [found_in(content, kind[1])]
    return None


def found_in(changed, content):
    """Return the first place in which two contents differ."""
    for path in places(changed):
        here, there = changed, content
        try:
            for name in path:
                here, there = here[name], there[name]
        except (KeyError, IndexError, TypeError):
            return path, "is new"
        if not isinstance(here, (dict, list)) and repr(here) != repr(there):
            return path, here, there
    return "missing", [path for path in places(content) if not has(changed, path)][:1]


def has(content, path):
    """Say whether there is a value at a path."""
    try:
        for name in path:
            content = content[name]
    except (KeyError, IndexError, TypeError):
        return False
    return True


LOOP = ("loops", "fit_loop")
BATCHES = (*LOOP, "epoch_loop.batch_progress")
STEPS = (*LOOP, "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed")
GROUP = ("optimizer_states", 0, "param_groups", 0)
REFUSED = [
    *(((*BATCHES, "total", "ready"), 9), ((*BATCHES, "current", "ready"), 0), ((*BATCHES, "current", "started"), -2)),
    *((STEPS, 1), (STEPS, 3.0), (STEPS, True), (LOOP, {}), (LOOP, "x"), (BATCHES, ...), (("loops", "more"), {})),
    *((("global_step",), 1), (("global_step",), True), (("optimizer_states", 0, "state", 999), {})),
    *(((*GROUP, "lr"), 123.0), ((*GROUP, "lr"), NAN), ((*GROUP, "lr"), ...), ((*GROUP, "lr"), "1"), (GROUP, 1)),
    *(((*GROUP, "weight_decay"), 0.5), ((*GROUP, "params"), [1]), (("optimizer_states", 0, "param_groups"), [])),
    *((("lr_schedulers",), [{"a": 1}] * 2), (("lr_schedulers",), [1]), (("callbacks",), "x")),
    (("pytorch-lightning_version",), "no version"),
]


def test_parts_that_no_training_has_are_refused(kind, tmp_path, times, counted):
    tried = REFUSED[:: times(3, 1)]
    for i, (path, value) in enumerate(tried):
        said = sentence_or_right(kind, changed(kind[1], path, value), tmp_path / str(i))
        assert said, (path, value)
        assert "cannot resume from" in said
    counted(refused=len(tried))


SCHEDULE = ("lr_schedulers", 0, "lr_lambdas")


def test_what_a_restart_would_begin_anew_is_not_left_out(kind, tmp_path):
    _, content, _ = kind
    state = ("optimizer_states", 0, "state", max(content["optimizer_states"][0]["state"]))
    wrong = [
        (("callbacks",), ...),
        ((*GROUP, "params"), ...),
        ((RUN, "version"), TENSORS[1]),
        (state, ...),
        ((*GROUP, "lr"), [TENSORS[-1]]),
    ]
    if has(content, (*GROUP, "muon")):
        last = len(content["optimizer_states"][0]["param_groups"]) - 1  # of what Adam trains
        wrong.append((("optimizer_states", 0, "param_groups", last, "muon"), ...))
    for i, (path, value) in enumerate([*wrong, *([(SCHEDULE, ...)] if has(content, SCHEDULE) else [])]):
        assert has(content, path), path
        assert "cannot resume from" in sentence_or_right(kind, changed(content, path, value), tmp_path / str(i))


def other_numbers(found, wanted):
    """Say whether what an objective measured was replaced by other numbers of its type."""
    if not isinstance(found, dict) or found == wanted or found.keys() != wanted.keys():
        return False
    return all(type(value) is float and abs(value) < 1e30 for value in found.values())


def first_tensors(content):
    """Return the path of one tensor of each name in each part."""
    found = {}
    for part in ("state_dict", "optimizer_states", "current_model_state", "averaging_state"):
        for path in places(content[part], (part,)) if part in content else ():
            value = content
            for name in path:
                value = value[name]
            if isinstance(value, torch.Tensor):
                found.setdefault((part, path[-1] if part == "optimizer_states" else ""), (path, value))
    return found.values()


def test_tensors_of_other_types_shapes_and_values_are_refused(kind, tmp_path, times, counted):
    refused = 0
    for path, value in [*first_tensors(kind[1])][:: times(4, 1)]:
        others = (value.to(torch.complex64), value.reshape(1, *value.shape), value.to_sparse(), "text", ..., None)
        floats = (value.double(), value + torch.nan, value - torch.inf)
        for i, other in enumerate((*others, *(floats if value.is_floating_point() else ()))):
            name = f"{'-'.join(map(str, path))}-{i}"
            assert sentence_or_right(kind, changed(kind[1], path, other), tmp_path / name), (path, other)
            refused += 1
    counted(refused=refused)


def test_a_checkpoint_names_no_other_file_to_remove(kind, tmp_path):
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "mine.txt"
    own.write_text("kept")
    name = next(name for name in kind[1]["callbacks"] if name.startswith("ModelCheckpoint"))
    for key in ("best_model_path", "last_model_path"):
        content = changed(kind[1], ("callbacks", name, key), str(own))
        content["callbacks"][name]["dirpath"] = str(tmp_path / key)
        assert "names" in sentence_or_right(kind, content, tmp_path / key)
    assert own.read_text() == "kept"


def test_mutated_contents_are_refused_or_right(kind, tmp_path, times, counted):
    source, refused, tried = random.Random(8), 0, times(4, 2500)
    for i in range(tried):
        content = mutated(kind[1], source, VALUES)
        while other_numbers(content.get("objective"), kind[1].get("objective")):  # any are as likely as weights are
            content = mutated(kind[1], source, VALUES)
        refused += sentence_or_right(kind, content, tmp_path / str(i)) is not None
    counted(refused=refused, right=tried - refused)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_resumed_run_may_add_up_another_number_of_parts(trainings, tmp_path, before, after):
    train = trainings["routers"]
    train(tmp_path / "run", 3, parts=before)
    resumed, whole = train(tmp_path / "run", 7, "auto", parts=after), train(tmp_path / "whole", 7)
    for name, logits in whole.items():
        torch.testing.assert_close(resumed[name], logits, rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_run_in_another_precision_is_resumed_from_its_checkpoint_alone(trainings, tmp_path, precision):
    trainings["routers"](tmp_path / "first", 2, precision=precision)
    (tmp_path / "moved").mkdir()
    (tmp_path / "first" / "last.ckpt").rename(tmp_path / "moved" / "last.ckpt")  # without the rest of the run
    resumed = trainings["routers"](tmp_path / "moved", 4, resume="auto", precision=precision)
    whole = trainings["routers"](tmp_path / "whole", 4, precision=precision)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
