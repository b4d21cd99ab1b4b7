"""`benchmarks/gpu.sh` without a GPU: every part runs on tiny networks, and nothing of them is left on the host."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import calibration, cuda_tests, drawing, networks, parts, processes, task, training, trajectories
from benchmarks.gpu.report import Report
from l2c.backbones.presets import build_backbone, model_preset
from l2c.calibration.cost import count_macs
from l2c.sampling.sampler import Sampler
from l2c.speed.latency import evaluations
from l2c.speed.published_scheme import PublishedScheme

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "benchmarks/gpu/__main__.py"


def make_task(device="cpu", **changes):
    lines = []
    given = {
        "device": torch.device(device),
        "tiny": True,
        "router": None,
        "deadline": time.monotonic() + 600,
        "send": lambda table, values: lines.append((table, values)),
        **changes,
    }
    return task.Task(**given), lines


def test_every_part_runs_and_runs_again_only_when_asked(call, tmp_path):
    """All code of all parts but what a CUDA device alone has: captured graphs, its memory, its tests."""
    folder = tmp_path

    def run(*more):
        return call(ENTRY, "--tiny", "--device", "cpu", "--output", str(folder), *more)

    check_everything(run("--minutes", "15"), folder)
    before = (folder / "results.json").read_text()
    again = run("--parts", "dit,attention")
    assert (again.returncode, again.stdout.count("done before; --again repeats it")) == (0, 2)
    assert (folder / "results.json").read_text() == before
    again = run("--parts", "attention", "--again")
    assert (again.returncode, again.stdout.count("attention: done\n")) == (0, 1)
    now = json.loads((folder / "results.json").read_text())["parts"]
    assert now.pop("attention") != (first := json.loads(before)["parts"]).pop("attention")
    assert now == first


def check_everything(result, folder):
    content = json.loads((folder / "results.json").read_text())
    done = {name: (part["status"], part["reason"]) for name, part in content["parts"].items()}
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert list(done) == [part.name for part in parts.PARTS]
    assert all(status in ("done", "left out") for status, _ in done.values()), done
    assert all("is not installed" in reason for status, reason in done.values() if status == "left out")
    assert all(part["machine"] for part in content["parts"].values())
    assert content["rehearsal"]
    page = (folder / "results.md").read_text()
    assert "A rehearsal with tiny networks" in page
    for name in ("dit", "uvit", "attention", "memory"):
        assert content["parts"][name]["tables"]
        assert f"## {name}" in page
    for line in content["parts"]["memory"]["tables"].values():
        assert all(row["cache, counted"] == row["cache, predicted"] for row in line)
    (rows,) = content["parts"]["dit"]["tables"].values()
    assert all("tf32 published, cached / this" in row and "bf16 published, cached / this" in row for row in rows)
    fallen = [row["why not as asked"] for row in rows if "failed" in row["run"]]
    assert len(fallen) == 3
    assert all("only a CUDA device has graphs" in reason for reason in fallen)
    if done["drawing"][0] == "done":
        (rows,) = content["parts"]["drawing"]["tables"].values()
        assert [row["run"] for row in rows] == ["eager", "eager (captured failed)"]
        assert "only a CUDA device has graphs" in rows[1]["why not as asked"]
    if done["pipeline"][0] == "done":
        first, second = list(content["parts"]["pipeline"]["tables"].items())[:2]
        assert first[0].startswith("layers computed")
        assert [row["variant"] for row in first[1]][:2] == ["uncached", pipelines().EVERYTHING]
        assert second[0] == "what the hooks cost, seconds of each round"
        assert set(second[1][0]) == {"round", "uncached", pipelines().EVERYTHING}


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_nothing_is_left_on_the_host(kind, monkeypatch):
    """The device `meta` refuses tensors of the host beside its own, as CUDA does."""
    monkeypatch.setattr(networks, "enliven", lambda module: None)  # looks at values
    monkeypatch.setattr(training.Schemes, "_autocast", lambda self: contextlib.nullcontext())
    place, _ = make_task("meta")
    net = networks.network(place, kind)
    labels = torch.arange(2, device="meta")
    x = torch.randn(2, *net.backbone.input_shape, device="meta")
    graph = net.graph(6)
    for options in ({}, {"precision": "bf16"}, {"cache_dtype": "bf16"}):
        sampler = Sampler(net.backbone, graph=graph, cfg_scale=net.cfg_scale, any_weights=True, **options)
        assert sampler._trajectory(x, labels).is_meta
        scheme = PublishedScheme(sampler.backbone, labels, sampler.guidance, graph)
        with torch.no_grad():
            assert all(state.is_meta for state in evaluations(sampler.solver, scheme, x))
    schemes = training.Schemes(net.backbone, 2, "32-true")
    for name in ("published", "frozen"):  # what is stored lies on the host
        schemes.step(name)()


def test_networks_compute_what_was_published():
    """The MACs that the published routers allow to save: FACTS of the papers' tables, within 1 % for U-ViT."""
    allowed = {"dit": {20: 1.2845, 50: 1.3111}, "uvit": {20: 1.3704, 50: 1.7176}}
    for kind, by_evaluations in allowed.items():
        with torch.device("meta"):
            backbone = build_backbone(model_preset(networks.PRESETS[kind])).eval()
        preset = model_preset(networks.PRESETS[kind]).sampling
        net = networks.Network(kind, backbone, preset.solver, preset.cfg_scale)
        for num_evaluations, speed_up in by_evaluations.items():
            graph = net.graph(num_evaluations)
            assert count_macs(backbone).speed_up(graph) == pytest.approx(speed_up, rel=0.01)
    assert networks.spread(7, 3) == [2, 2, 3]


def pipelines():
    return pytest.importorskip("benchmarks.gpu.pipelines")


def run_fake(monkeypatch, tmp_path, *measures, minutes=1.0, skip=()):
    """Run parts whose work is given here; return their status and what was written."""
    fakes = [parts.Part(f"part{i}", f"fake{i}", 1, "nothing") for i in range(len(measures))]
    for i, measure in enumerate(measures):
        module = type("Module", (), {"measure": staticmethod(measure)})
        monkeypatch.setitem(__import__("sys").modules, f"benchmarks.gpu.fake{i}", module)
    report = Report(tmp_path, command="it", names=[part.name for part in fakes], tiny=True)
    fakes = [part for part in fakes if part.name not in skip]
    processes.run_parts(fakes, parts.Settings("cpu", True, None), report, minutes=minutes)
    content = json.loads((tmp_path / "results.json").read_text())["parts"]
    return [(part["status"], part["reason"]) for part in content.values()], content


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(monkeypatch, tmp_path, capfd):
    def fails(task):
        task.send("before", {"seconds": 1.0})
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    def lacks(task):
        try:
            import no_such_package  # noqa: F401
        except ModuleNotFoundError as error:  # as diffusers does with what it imports late
            raise RuntimeError("Failed to import a pipeline") from error

    def dies(task):
        __import__("os")._exit(9)

    def hangs(task):
        task.send("before", {"seconds": 2.0})
        subprocess.run(["sleep", "600"], check=False)

    def works(task):
        task.send("table", {"run": "a", "seconds": 0.123456})
        task.send("table", {"run": "b", "error": None})

    status, content = run_fake(monkeypatch, tmp_path, fails, lacks, dies, works, hangs, minutes=0.08)
    assert status[0] == ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered")
    assert status[1] == ("left out", "the package no_such_package is not installed")
    assert status[2] == ("failed", "its process ended with code 9")
    assert status[3] == ("done", None)
    assert status[4][0] == "stopped"
    assert content["part0"]["tables"] == {"before": [{"seconds": 1.0}]}
    assert content["part4"]["tables"] == {"before": [{"seconds": 2.0}]}
    page = (tmp_path / "results.md").read_text()
    assert "| run | seconds | error |" in page
    assert "0.1235" in page


def test_without_a_device_parts_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(task.LeftOut, match="no CUDA device here; rehearse with --tiny --device cpu"):
        task.device_of(None)


def test_out_of_memory_is_a_figure(monkeypatch):
    def runs_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calibration, "measure_responses", runs_out)
    place, lines = make_task()
    calibration.measure(place)
    assert [values["seconds a trajectory"] for _, values in lines][2:] == ["out of memory"] * 2


def test_the_command_refuses_in_one_sentence(call):
    for arguments, says in (
        (("--parts", "dit,fast"), "there is no part 'fast'; --parts takes some of tests, dit, uvit"),
        (("--minutes", "0"), "--minutes must be a number above 0, got 0"),
        (("--router", "nowhere.json"), "no router at nowhere.json; give a SmoothCache schedule"),
    ):
        result = call(ENTRY, *arguments)
        assert result.returncode == 1
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_the_shell_entry_explains_itself():
    result = subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "gpu.sh"), "--help"],
        env={"PYTHON": __import__("sys").executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "--pack DIR" in result.stdout
    assert all(part.does in result.stdout for part in parts.PARTS)


def test_a_part_is_done_when_all_is_measured_and_stopped_when_something_is_not(monkeypatch, tmp_path):
    def late(task):
        task.send("table", {"seconds": 1.0})
        time.sleep(max(0.0, task.deadline - time.monotonic()) + 0.05)

    def early(task):
        late(task)
        task.begin()

    def silent(task):
        pass

    status, _ = run_fake(monkeypatch, tmp_path, late, early, silent, minutes=0.04)
    assert status == [
        ("done", None),
        ("stopped", "its time was over before all was measured"),
        ("failed", "it measured nothing"),
    ]


def test_a_second_run_keeps_what_the_first_has(monkeypatch, tmp_path):
    def sends(*numbers, error=None):
        def measure(task):
            for number in numbers:
                task.send("table", {"number": number})
            if error is not None:
                raise error

        return measure

    stop = task.OutOfTime("too late")
    run_fake(monkeypatch, tmp_path, sends(1), sends(1, 2, error=stop), sends(1, 2, error=stop))
    Report(tmp_path, command="again", names=["part0", "part1", "part2"], tiny=True)  # begins and dies
    status, content = run_fake(monkeypatch, tmp_path, sends(), sends(3), sends(3, error=stop), skip=("part0",))
    assert status == [("done", None), ("done", None), ("stopped", "too late")]
    numbers = [[row["number"] for row in part["tables"]["table"]] for part in content.values()]
    assert numbers == [[1], [3], [1, 2]]  # a shorter attempt replaces nothing unless it is whole
    with pytest.raises(ValueError, match="is of a rehearsal, and this is a measurement; give another folder"):
        Report(tmp_path, command="it", names=["part0"], tiny=False)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not what this measurement writes; give another folder"):
        Report(tmp_path, command="it", names=["part0"], tiny=True)


def test_nothing_measured_is_no_success(call, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    result = call(ENTRY, "--tiny", "--parts", "attention", "--output", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == "error: nothing was measured; the reason of each part stands above\n"
    assert "attention: left out: there is no CUDA device here" in result.stdout


TESTS = """
import time

def test_cuda_compiled(): pass
def test_cuda_fails(): assert 1 == 2
def test_other(): pass
def test_cuda_works(): time.sleep({seconds})
"""


@pytest.mark.parametrize("seconds", [0, 3])
def test_results_of_tests_are_sent_one_by_one_and_compiled_ones_come_last(monkeypatch, tmp_path, seconds):
    file = tmp_path / "test_it.py"
    file.write_text(TESTS.format(seconds=seconds))

    def measure(task):
        cuda_tests.run_tests(task, (str(file),), named="cuda")

    ((status, reason),), content = run_fake(monkeypatch, tmp_path, measure, minutes=0.05 if seconds else 0.5)
    rows = content["part0"]["tables"]["tests"]
    found = [(row["test"].rpartition("_")[2], row["result"]) for row in rows]
    assert rows[0]["why"] == "assert 1 == 2"
    if seconds:  # killed in the middle
        assert (status, found) == ("stopped", [("fails", "failed")])
    else:
        assert found == [("fails", "failed"), ("works", "passed"), ("compiled", "passed")]
        assert (status, reason) == ("failed", "RuntimeError: the tests ended with code 1: 1 failed, 2 passed")


def test_tests_are_not_begun_when_time_is_over(monkeypatch, tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text("def test_cuda_a(): pass\ndef test_cuda_b(): pass\n")

    def measure(given):
        cuda_tests.run_tests(make_task(deadline=0.0, send=given.send)[0], (str(file),), named="cuda")

    status, _ = run_fake(monkeypatch, tmp_path, measure)
    assert status == [("stopped", "2 of 2 tests were not begun in time")]


SIGNALLED = """
import os, pathlib, sys, time
from benchmarks.gpu import parts, processes
from benchmarks.gpu.report import Report

def measure(task):
    pathlib.Path(sys.argv[1], "child").write_text(str(os.getpid()))
    time.sleep(600)

sys.modules["benchmarks.gpu.fake"] = type("Module", (), {"measure": staticmethod(measure)})
part = parts.Part("part", "fake", 1, "nothing")
report = Report(pathlib.Path(sys.argv[1]), command="it", names=["part"], tiny=True)
processes.run_parts([part], parts.Settings("cpu", True, None), report, minutes=5)
"""


def test_a_signal_ends_the_process_of_the_part_too(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    child = tmp_path / "child"
    for _ in range(600):
        if child.exists() and child.read_text():
            break
        time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)


def test_old_cards_compute_in_fp16_and_say_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    old, _ = make_task("cuda:0")
    assert (old.precision, old.dtype, old.published_precision) == ("fp16", torch.float16, "fp32")
    assert old.machine.startswith("an old card, ")
    assert old.machine.endswith("; it has neither bf16 nor TF32, so fp16 and fp32 stand for them")
    ways = trajectories._settings(old, (*trajectories.UNCOMPILED, ("fp32", trajectories.PUBLISHED)), 1)
    found = [(setting.precision, setting.mode) for setting in ways]
    assert found == [("fp32", "published"), ("fp16", "published"), ("fp16", "eager"), ("fp16", "captured")]


def test_lightning_is_given_the_device_that_was_asked_for():
    assert drawing.trainer_on(torch.device("cuda:1")) == {"accelerator": "gpu", "devices": [1]}
    assert drawing.trainer_on(torch.device("cpu")) == {"accelerator": "cpu", "devices": 1}


def test_a_pipeline_is_timed_in_as_many_steps_as_there_is_time_for():
    assert pipelines().steps_that_fit((20, 10, 4), 1.0, 25.0) == 20
    assert pipelines().steps_that_fit((20, 10, 4), 1.0, 19.0) == 10
    assert pipelines().steps_that_fit((20, 10, 4), 1.0, 1.0) == 4


def test_rounds_of_a_pipeline_that_were_timed_are_kept_when_time_is_over():
    class Rivals:
        size, steps = "small", 2

        def draw(self, pipe):
            pipe.transformer(torch.zeros(1))
            pipe.draws += 1
            if pipe.draws == 3:  # one to count, two rounds
                object.__setattr__(place, "deadline", 0.0)

    def make():
        transformer = torch.nn.Sequential()
        transformer.add_module("to_q", torch.nn.Identity())
        return type("Pipe", (), {"transformer": transformer, "draws": 0})()

    def lacks():
        import no_such_package  # noqa: F401

    place, lines = make_task()
    comparison = pipelines().Comparison(place, Rivals())
    comparison.add("uncached", make)
    comparison.add(pipelines().BLOCKS, make)
    comparison.add("FirstBlockCache", lacks)
    with pytest.raises(task.OutOfTime, match="2 of 5 rounds of 'all' were timed"):
        comparison.time("all", 5)
    assert [table for table, _ in lines] == [
        *["layers computed, small, 2 steps, bf16"] * 2,
        "left out",
        *["all, seconds of each round"] * 2,
        *["all, small, 2 steps, bf16"] * 2,
    ]
    assert lines[0][1]["layers computed"] == "1 of 1"
    assert lines[2][1]["reason"] == "the package no_such_package is not installed"
    with pytest.raises(ModuleNotFoundError):  # ours are there, or something is wrong
        comparison.add("graph: another", lacks)


def test_the_package_that_a_pipeline_lacks_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        pipelines()._pipeline(make_task()[0])
    assert task.lacking_module(caught.value) == "the package transformers is not installed"
    late = ModuleNotFoundError("No module named 'torch.new.part'", name="torch.new.part")
    assert task.lacking_module(late) == "the installed torch has no module torch.new.part"
    assert task.lacking_module(ModuleNotFoundError("ours", name="l2c.gone")) is None
    assert task.lacking_module(RuntimeError("another")) is None
