"""Timing in pieces, what is made of the times, and the linear model of scale."""

from __future__ import annotations

import json

import pytest
import torch

from l2c.calibration.cost import count_macs
from l2c.sampling.sampler import Sampler
from l2c.speed.bench import Bench, Setting, _device_memory, _reset_device_memory
from l2c.speed.latency import alternate, alternate_pieces, evaluations
from l2c.speed.report import speed_table, write_speed_report
from l2c.speed.scale import LinearModel, Run, Size, TimedSize


def test_pieces_of_runs_alternate_and_nobody_is_always_first():
    calls = []

    def run(name, pieces):
        def start():
            for piece in range(pieces):
                calls.append((name, piece))
                yield piece

        return start

    times = alternate_pieces({"a": run("a", 3), "b": run("b", 3), "c": run("c", 1)}, repetitions=2)
    assert {name: tuple(seconds.shape) for name, seconds in times.items()} == {"a": (2, 3), "b": (2, 3), "c": (2, 1)}
    assert all((seconds > 0).all() for seconds in times.values())
    once = [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert calls == once * 2


def test_the_clock_waits_for_the_devices_at_work(monkeypatch):
    """Not for the current one: work may be on another, and asking an idle one would set it up."""
    waited = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: (0, 5, 7)[index])
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    alternate({"only": lambda: waited.append("call")}, repetitions=1)
    assert waited == ["call", 1, 2, "call", 1, 2]  # the warm-up, then the timed one


def test_memory_is_read_on_the_device_of_the_work(backbone, make_graph, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 9)
    second = torch.device("cuda", 1)
    _reset_device_memory(second)
    assert (_device_memory(second), asked) == (9, [second, second])
    graph = make_graph(backbone, num_evaluations=2)
    bench = Bench(backbone, graph, count_macs(backbone), cfg_scale=2.0)
    (speed,) = bench.run([Setting(1, "fp32", "default", "eager")], repetitions=1, by_evaluation=False)
    assert speed.device_bytes is None  # of a CPU
    assert len(asked) == 2


def test_states_after_each_evaluation_end_with_the_images(backbone, make_graph):
    sampler = Sampler(backbone, graph=make_graph(backbone))
    noise, labels = torch.randn(2, *backbone.input_shape), torch.tensor([1, 2])
    with torch.no_grad():
        states = list(evaluations(sampler.solver, sampler.denoiser(labels), noise))
    assert len(states) == 6
    assert torch.equal(states[-1], sampler.sample(labels, noise=noise))


@pytest.mark.parametrize("by_evaluation", [True, False])
def test_settings_of_a_graph_side_by_side(backbone, make_graph, by_evaluation, tmp_path):
    graph = make_graph(backbone, num_evaluations=4)
    cost = count_macs(backbone)
    bench = Bench(backbone, graph, cost, cfg_scale=2.0)
    settings = [Setting(2, "fp32", "default", "published"), Setting(2, "fp32", "default", "eager")]
    speeds = bench.run(
        [*settings, Setting(2, "bf16", "default", "eager")], repetitions=2, by_evaluation=by_evaluation
    )
    for speed in speeds:
        assert speed.speed_up == pytest.approx(speed.uncached / speed.cached)
        assert speed.efficiency == pytest.approx(speed.speed_up / cost.speed_up(graph))
        assert speed.images_per_second == pytest.approx(2 / speed.cached)
        assert len(speed.by_evaluation) == (4 if by_evaluation else 0)
        assert speed.cache_bytes == speed.predicted_bytes
    tokens, width = backbone.layer_shape
    assert speeds[0].cache_bytes == speeds[0].every_output_bytes == backbone.num_layers * 4 * tokens * width * 4
    assert speeds[2].every_output_bytes == speeds[0].every_output_bytes // 2
    assert speeds[1].cache_bytes == Sampler(backbone, graph=graph, cfg_scale=2.0).cache_bytes(2)
    assert speeds[0].error == 0
    assert speeds[1].error < 1e-4 < speeds[2].error < 0.3
    assert "published" in speed_table(speeds)
    report = write_speed_report(tmp_path, graph, cost, speeds, command="it", notes=["a note"])
    assert "a note" in report.read_text()
    assert (tmp_path / "evaluations.png").exists() == by_evaluation
    assert json.loads((tmp_path / "results.json").read_text())["results"][1]["cached"] == speeds[1].cached


def test_why_a_setting_did_not_run_as_asked_is_among_its_results(backbone, make_graph):
    def broken(module, inputs):
        raise RuntimeError("no compiler here")

    graph = make_graph(backbone, num_evaluations=4)
    bench = Bench(backbone, graph, count_macs(backbone), cfg_scale=2.0, backend=broken)
    settings = [Setting(2, "fp32", "default", mode) for mode in ("eager", "captured", "compiled")]
    with pytest.warns(UserWarning, match="compiling them failed"):
        eager, captured, compiled = bench.run(settings, repetitions=1, by_evaluation=False)
    assert [speed.setting.mode for speed in (eager, captured, compiled)] == ["eager"] * 3
    assert eager.fallback is None
    assert captured.fallback.startswith("the trajectory is not captured as a CUDA graph: the backbone is on cpu")
    assert "no compiler here" in compiled.fallback or "BackendCompilerFailed" in compiled.fallback


def made_up(terms, coefficients):
    seconds = sum(c * term for c, term in zip(coefficients, terms, strict=True))
    return TimedSize(Size(1, 16, 2, 4), seconds, terms, 0, 0)


def test_the_linear_model_finds_the_coefficients_of_exact_times():
    terms = [(1.0, 2.0, 10.0), (5.0, 3.0, 10.0), (2.0, 9.0, 40.0), (7.0, 1.0, 20.0)]
    model = LinearModel.fit([made_up(t, (0.02, 0.003, 0.001)) for t in terms])
    assert model.coefficients == pytest.approx((0.02, 0.003, 0.001))
    assert model.seconds((1.0, 1.0, 1.0)) == pytest.approx(0.024)
    never_negative = LinearModel.fit([made_up(t, (0.02, -0.0001, 0.001)) for t in terms])
    assert min(never_negative.coefficients) == 0


def test_a_run_of_a_size_holds_half_of_the_outputs():
    run = Run(Size(batch_size=2, tokens=16, depth=3, num_evaluations=4, hidden_size=64))
    assert run.seconds() > 0
    assert run.sampler.cache_peak_bytes == run.sampler.cache_bytes(2) == 3 * 4 * 16 * 64 * 4
    assert run.terms[1] == pytest.approx(4 * 16 * 64 * (2 * 6 + 2 * 3) / 1e6)
    with pytest.raises(ValueError, match="must be a square number"):
        Run(Size(1, 10, 1, 2))
