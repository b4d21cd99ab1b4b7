"""`benchmarks/gpu.sh` without a GPU: every part runs on tiny networks, and nothing of them is left on the host."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import calibration, networks, parts, processes, task, training
from benchmarks.gpu.report import Report
from l2c.backbones.presets import build_backbone, model_preset
from l2c.calibration.cost import count_macs
from l2c.sampling.sampler import Sampler
from l2c.speed.latency import evaluations
from l2c.speed.published_scheme import PublishedScheme

ROOT = Path(__file__).resolve().parents[2]


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


def test_every_part_runs(call_process, tmp_path):
    """All code of all parts but what a CUDA device alone has: captured graphs, its memory, its tests."""
    result = call_process(
        "-m", "benchmarks.gpu", "--tiny", "--device", "cpu", "--minutes", "15", "--output", str(tmp_path)
    )
    content = json.loads((tmp_path / "results.json").read_text())
    done = {name: (part["status"], part["reason"]) for name, part in content["parts"].items()}
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert list(done) == [part.name for part in parts.PARTS]
    assert all(status in ("done", "left out") for status, _ in done.values()), done
    assert all("is not installed" in reason for status, reason in done.values() if status == "left out")
    assert content["machine"]
    assert content["rehearsal"]
    page = (tmp_path / "results.md").read_text()
    assert "A rehearsal with tiny networks" in page
    for name in ("dit", "uvit", "attention", "memory"):
        assert content["parts"][name]["tables"]
        assert f"## {name}" in page
    for line in content["parts"]["memory"]["tables"].values():
        assert all(row["cache, counted"] == row["cache, predicted"] for row in line)


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


def run_fake(monkeypatch, tmp_path, *measures, minutes=1.0):
    """Run parts whose work is given here; return their status and what was written."""
    fakes = [parts.Part(f"part{i}", f"fake{i}", 1, "nothing") for i in range(len(measures))]
    for i, measure in enumerate(measures):
        module = type("Module", (), {"measure": staticmethod(measure)})
        monkeypatch.setitem(__import__("sys").modules, f"benchmarks.gpu.fake{i}", module)
    report = Report(tmp_path, command="it", names=[part.name for part in fakes], tiny=True)
    processes.run_parts(fakes, parts.Settings("cpu", True, None), report, minutes=minutes)
    content = json.loads((tmp_path / "results.json").read_text())["parts"]
    return [(part["status"], part["reason"]) for part in content.values()], content


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(monkeypatch, tmp_path, capfd):
    def fails(task):
        task.send("before", {"seconds": 1.0})
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    def lacks(task):
        import no_such_package  # noqa: F401

    def dies(task):
        __import__("os")._exit(9)

    def hangs(task):
        task.send("before", {"seconds": 2.0})
        subprocess.run(["sleep", "600"], check=False)

    def works(task):
        task.send("table", {"run": "a", "seconds": 0.123456})
        task.send("table", {"run": "b", "error": None})

    status, content = run_fake(monkeypatch, tmp_path, fails, lacks, dies, works, hangs, minutes=0.2)
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


def test_the_command_refuses_in_one_sentence(call_process):
    for arguments, says in (
        (("--parts", "dit,fast"), "there is no part 'fast'; --parts takes some of tests, dit, uvit"),
        (("--minutes", "0"), "--minutes must be a number above 0, got 0"),
        (("--router", "nowhere.json"), "no router at nowhere.json; give a SmoothCache schedule"),
    ):
        result = call_process("-m", "benchmarks.gpu", *arguments)
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
