"""One calibration: its file, and graphs of other budgets and times without the model."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import l2c
from l2c.calibration.grid import Grid, finer
from l2c.calibration.responses import measure_both_ways
from l2c.graph.statistics import ERROR, UNKNOWN
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import uncached_like

E = 10
CORRECTION = {"num_evaluations": E, "share": 0.5, "predicted": 1e-3, "true": 2e-3}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    net = l2c.DiT(
        input_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        depth=2,
        num_heads=2,
        num_classes=5,
        learn_sigma=True,
    ).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def sampler(backbone):
    return Sampler(backbone, solver="ddim", num_evaluations=E, cfg_scale=1.5)


@pytest.fixture(scope="module")
def calibration(sampler):
    noise = seeded_noise(sampler.backbone.input_shape, 3, 4)
    found = measure_both_ways(sampler, torch.arange(4), noise, num_probes=2, max_age=6, batch_size=4)
    back, ahead = found["responses"], found["responses_ahead"]
    context, solver = PolicyContext.of(sampler), sampler.solver
    return l2c.Calibration(
        {"responses": back, "responses_ahead": ahead},
        context.blank.binding,
        {"seed": 3, "num_trajectories": 4, "responses": {"num_probes": 2}},
        grid=Grid.of(solver),
        schedule=solver.schedule,
        cost=context.cost,
        corrections=({**CORRECTION, "true": CORRECTION["predicted"]},),
    )


@pytest.fixture
def path(calibration, tmp_path):
    calibration.save(tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_a_file_brings_everything_back(calibration, path):
    again = l2c.Calibration.load(path)
    assert (again.binding, again.grid, again.schedule, again.cost) == (
        calibration.binding,
        calibration.grid,
        calibration.schedule,
        calibration.cost,
    )
    assert again.settings == calibration.settings
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in calibration.tensors.items())
    assert again.graph(0.5) == calibration.graph(0.5)


def test_at_the_times_measured_a_graph_is_that_of_the_policy(calibration, sampler):
    graph = calibration.graph(0.6, max_span=4)
    assert graph == make_graph("gram", PolicyContext.of(sampler, calibration), budget=0.6)
    assert "carried_from" not in graph.provenance


@pytest.mark.parametrize("num_steps", [6, 14, 20])
def test_graphs_of_other_numbers_of_steps_run(calibration, backbone, num_steps):
    graph = calibration.graph("1.6x", num_steps=num_steps)
    assert graph.num_evaluations == num_steps
    assert graph.provenance["carried_from"] == E
    assert graph.measured["evaluations_worth_of_macs"] == pytest.approx(num_steps / 1.6, abs=0.2)
    assert graph.measured["expected_mse"] > 0
    x = Sampler(backbone, graph=graph).sample([1, 2], seed=0)
    assert x.shape == (2, 4, 8, 8)
    context = PolicyContext.of(
        Sampler(backbone, solver="ddim", num_evaluations=num_steps, cfg_scale=1.5), calibration
    )
    assert make_graph("gram", context, budget="1.6x", max_span=max(4, round(0.3 * num_steps))) == graph


def test_errors_far_beyond_what_was_measured_are_not_told(calibration, sampler, caplog, tmp_path):
    ladder = calibration.ladder([0.6, 0.5], num_steps=25)
    for graph in (*ladder, calibration.graph(0.6, num_steps=25)):
        assert graph.measured["expected_mse"] is graph.measured["expected_mse_standard_error"] is None
        assert "calibrate with at least 13 evaluations" in graph.measured["expected_mse_unknown"]
        assert "expected squared error not known: 25 evaluations lie 2.5 x as close" in graph.summary()
    assert len(caplog.messages) == 1
    ladder.save(tmp_path / "ladder.json")
    again = l2c.Ladder.load(tmp_path / "ladder.json")
    assert again.summary().count("unknown +- unknown") == 2
    with pytest.raises(ValueError, match="none of their errors is known"):
        again.within(1.0)
    context = PolicyContext.of(uncached_like(sampler, num_evaluations=25), calibration)
    assert make_graph("gram", context, budget=0.6).measured["expected_mse"] is None
    late = uncached_like(sampler, num_evaluations=25).timesteps[-10:]
    assert finer(grid_at(late), calibration.grid) == pytest.approx(2.5, rel=0.1)  # by time, not by count
    known = replace(calibration, corrections=({"num_evaluations": 20, "share": 0.5, "predicted": 1.0, "true": 2.0},))
    assert known.graph(0.6, num_steps=25).measured["expected_mse"] > 0
    assert known.graph(0.6, num_steps=26).measured["expected_mse"] is None


def test_errors_of_tiny_calibrations_are_not_told(calibration):
    """Weights are fitted to the few directions along which the error is then expected."""
    few = {name: tensor[..., :2] for name, tensor in calibration.tensors.items()}
    alone = {**calibration.settings, "num_trajectories": 1}
    for wrong, sentence in (
        (replace(calibration, tensors=few, settings=alone), "responses of one trajectory say little"),
        (replace(calibration, settings={}), "its settings do not say on how many trajectories"),
        (replace(calibration, corrections=()), "without true errors, those that responses expect"),
    ):
        graph = wrong.graph(0.6)
        assert graph.measured["expected_mse"] is graph.measured["expected_mse_standard_error"] is None
        assert sentence in graph.measured["expected_mse_unknown"]
        assert wrong.graph(1.0).measured["expected_mse"] == 0  # reuses nothing
    assert calibration.graph(0.6).measured["expected_mse"] > 0


def grid_at(times):
    return Grid(times, times, (1.0,) * len(times), (True,) * len(times))


def test_carried_responses_are_kept_in_no_file(calibration, sampler, tmp_path):
    context = PolicyContext.of(uncached_like(sampler, num_evaluations=12), calibration)
    with pytest.raises(
        ValueError, match=r"from 10 to 12 evaluations are kept in no file; save the calibration of 10"
    ):
        context.calibration.save(tmp_path / "carried.safetensors")
    assert not list(tmp_path.iterdir())


def test_too_many_steps_for_memory_are_refused_with_what_fits(calibration, monkeypatch):
    monkeypatch.setattr("l2c.calibration.other_times.MOST_BYTES", 4 * 40 * 4 * 16 * 8)
    with pytest.raises(ValueError, match=r"for 100 evaluations, allowed are .*; take at most 40 steps, or a calib"):
        calibration.graph(0.5, num_steps=100)
    assert calibration.graph(0.5, num_steps=40).num_evaluations == 40
    monkeypatch.setattr("l2c.calibration.measurements.carry", out_of_memory)
    with pytest.raises(MemoryError, match="while carrying responses to 30 evaluations; take half as many"):
        calibration.graph(0.5, num_steps=30)


def out_of_memory(*_, **__):
    raise MemoryError


def test_other_solvers_of_the_schedule_run(calibration, backbone):
    graph = calibration.graph(0.6, num_steps=12, solver="dpm_solver_2m")
    assert graph.solver == "dpm_solver_2m"
    assert Sampler(backbone, graph=graph).sample([1], seed=0).isfinite().all()


def test_a_ladder_is_graphs_made_alone_and_errs_more_for_less(calibration):
    ladder = calibration.ladder([0.8, 0.6, 0.45], num_steps=12)
    assert list(ladder) == [calibration.graph(share, num_steps=12) for share in (0.8, 0.6, 0.45)]
    errors = [graph.measured["expected_mse"] for graph in ladder]
    assert errors == sorted(errors)
    assert all(graph.measured["expected_mse_standard_error"] > 0 for graph in ladder)


def test_true_errors_correct_the_expected_ones(calibration, sampler):
    corrected = calibration.corrected(sampler, num_trajectories=4, batch_size=4)
    assert corrected.corrections[0]["share"] == pytest.approx(0.75, abs=0.02)
    assert {one["num_evaluations"] for one in corrected.corrections} == {4, E, 2 * E}
    graph, rosy = corrected.graph(0.5), calibration.graph(0.5)
    own = [one for one in corrected.corrections if one["num_evaluations"] == E]
    one = min(own, key=lambda one: abs(one["share"] - 0.5))
    assert graph.rows == rosy.rows
    assert graph.measured["expected_mse"] == pytest.approx(one["true"], rel=0.5)


def test_bad_requests_are_refused_in_one_sentence(calibration, make_dit):
    with pytest.raises(ValueError, match="not two of these"):
        calibration.graph(0.5, num_steps=4, timesteps=[3, 2, 1])
    with pytest.raises(ValueError, match="timesteps alone do not say what the steps of ddim are"):
        calibration.graph(0.5, timesteps=[900, 500, 100])
    flow = replace(calibration, binding=replace(calibration.binding, solver="flow_euler", solver_options={}))
    with pytest.raises(ValueError, match="must rise or fall all the way, got 950 after 900; give them in the order"):
        flow.graph(0.5, timesteps=[900, 950, 100])
    first, *_, last = flow.grid.timesteps
    with pytest.raises(ValueError, match=r"but those of the calibration from .* give the noisiest first"):
        flow.graph(0.5, timesteps=[last, 0.5 * (first + last), first])
    with pytest.raises(ValueError, match=r"the calibration was measured from t = .* but t = 5000 is wanted"):
        flow.graph(0.5, timesteps=[5000, 500, 100])
    short = replace(calibration, tensors={name: tensor[:, :, :1] for name, tensor in calibration.tensors.items()})
    with pytest.raises(ValueError, match=r"out of reach .* take more steps, or measure older outputs: .*max_age"):
        short.graph(0.3, num_steps=12)
    with pytest.raises(ValueError, match="adds noise at its steps"):
        calibration.graph(0.5, num_steps=12, solver="ddim", solver_options={"eta": 1.0})
    with pytest.raises(ValueError, match="cannot follow the noise schedule"):
        calibration.graph(0.5, solver="flow_euler")
    other = Sampler(make_dit(), solver="ddim", num_evaluations=12, cfg_scale=1.5)
    with pytest.raises(ValueError, match="the calibration was made for weights"):
        PolicyContext.of(other, calibration)


def test_nothing_is_expected_far_from_what_was_measured(calibration):
    near = [calibration.graph(0.8, num_steps=count).measured for count in (5, 20)]
    assert all(found[ERROR] > 0 and UNKNOWN not in found for found in near)
    for count, why in (
        (4, "4 evaluations lie 2.5 x as far apart in time as the 10 that"),
        (21, "21 evaluations lie 2.1 x as close in time"),
    ):
        far = calibration.graph(0.8, num_steps=count).measured
        assert far[ERROR] is None
        assert far[UNKNOWN].startswith(why)
    assert far[UNKNOWN].endswith("calibrate with at least 11 evaluations")


def rewritten(path, change, tensors=None):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["l2c"])
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    header.pop("digest")  # or that would be noticed first
    change(header)
    save_file(kept | (tensors or {}), path, metadata={"l2c": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda h: h.update(version=3), "of version 3, this package reads version 2; run l2c calibrate again"),
        (lambda h: h.pop("version"), "of version 1, this package reads version 2"),
        (lambda h: h.update(extra=1), "the field extra is unknown"),
        (lambda h: h["binding"].pop("model"), "the field binding.model is missing"),
        (lambda h: h["grid"]["coefficients"].pop(), "must have as many coefficients, got 9"),
        (lambda h: h["grid"].update(timesteps=[1.0] * E), "must rise or fall"),
        (lambda h: h["grid"]["coefficients"].insert(0, 0) or h["grid"]["coefficients"].pop(), "of sizes in .1e-09, "),
        (lambda h: h["grid"]["ends"].reverse(), "the ends of a grid must be in the order of its timesteps"),
        (lambda h: h["binding"].update(layers=["a"] * 4), "layer names must differ"),
        (lambda h: h["settings"]["responses"].update(num_probes="2"), "settings: responses.num_probes must be"),
        (lambda h: h["settings"].update(seed=-1), "settings: seed must be"),
        (
            lambda h: h["settings"].update(num_trajectories=3),
            "num_trajectories=3 x responses.num_probes=2 does not fit the 8 directions of responses; run l2c cal",
        ),
        (lambda h: h["settings"]["responses"].update(num_probes=3), "=4 x responses.num_probes=3 does not fit the 8"),
        (
            lambda h: h.update(settings={"responses": {"num_probes": 3}}),
            "responses.num_probes=3 does not fit the 8 di",
        ),
        (lambda h: h["settings"]["responses"].update(max_age=7), "max_age=7 does not fit the 6 ages of responses"),
        (lambda h: h["settings"].update(measure="changes"), "measure names no responses, but there is responses"),
        (lambda h: h["settings"].update(joined=5), "settings.joined must be a list, got 5"),
        (lambda h: h["settings"].update(joined=[]), "settings.joined must have 1 to 4096 parts, got 0"),
        (
            lambda h: h["settings"].update(joined=[{"seed": 3, "num_trajectories": 5}]),
            "settings.num_trajectories is 4, but the parts in settings.joined say 5; join them again",
        ),
        (lambda h: h["settings"].update(responses=[2]), "settings: responses must be values by name"),
        (
            lambda h: h.update(corrections=[CORRECTION | {"share": 7}]),
            r"corrections\[0\].share must be a finite numb",
        ),
        (
            lambda h: h.update(corrections=[CORRECTION | {"num_evaluations": 1e9}]),
            "num_evaluations must be a whole n",
        ),
        (lambda h: h.update(corrections=[CORRECTION | {"true": 1e300}]), r"corrections\[0\].true must be a finite n"),
        (lambda h: h["cost"]["layers"].pop(), "cost has 3 layers, but the file is of 4"),
        (lambda h: h["cost"].update(fixed=-1), "cost.fixed must be a whole number"),
        (lambda h: h["schedule"].update(name="sigmoid"), "unknown noise schedule 'sigmoid'"),
        (lambda h: h.update(corrections=[{"share": 0.5}]), r"corrections\[0\].predicted must be a finite number"),
    ],
)
def test_damaged_heads_are_refused(path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        l2c.Calibration.load(rewritten(path, change))


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("other", torch.ones(1), "the tensor 'other' is unknown"),
        ("responses", torch.ones(E, 4, 3), "must have 4 dimensions"),
        ("responses", torch.ones(E, 3, 3, 8), r"responses has \(10, 3\) evaluations and layers"),
        ("responses", torch.full((E, 4, 3, 8), torch.nan), "not finite"),
        ("responses", torch.full((E, 4, 3, 8), 1e25), r"or larger than 1e\+12"),
        ("responses", torch.ones(E, 4, 3, 8).bfloat16(), "must be a plain tensor of 32-bit floats .* torch.bfloat16"),
        ("output_responses_ahead", torch.ones(E, 1, 3, 8), "output_responses_ahead needs output_responses beside it"),
        ("responses", torch.ones(E, 4, 3, 6), "are of 6 and 8 directions"),
        ("responses_between", torch.ones(E, 4, 12, 8), r"responses_ahead_between must both be there.*missing"),
    ],
)
def test_wrong_tensors_are_refused(path, name, tensor, sentence):
    with pytest.raises(ValueError, match=sentence):
        l2c.Calibration.load(rewritten(path, lambda header: None, {name: tensor}))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no calibration at"):
        l2c.Calibration.load(tmp_path / "none")
    l2c.CacheGraph.load("dit_digits_ddim20").save(tmp_path / "graph.json")
    with pytest.raises(ValueError, match="is a cache graph, not a calibration; it is read by"):
        l2c.Calibration.load(tmp_path / "graph.json")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="cannot read a calibration of l2c"):
        l2c.Calibration.load(tmp_path / "text")


def test_what_stochastic_solvers_add_to_corrections_is_of_the_seed_and_the_images(calibration, sampler, monkeypatch):
    streams = []

    def drawn(self, labels=None, *, noise, seed, first_image):
        streams.append((seed, first_image))
        return noise

    monkeypatch.setattr(Sampler, "sample", drawn)
    settings = {**calibration.settings, "seed": 3, "first_trajectory": 96}
    replace(calibration, settings=settings).corrected(sampler, num_trajectories=4, batch_size=2)
    assert set(streams) == {(3, 100), (3, 102)}


def test_a_calibration_is_of_an_uncached_sampler_and_prints_as_one_line(calibration, backbone):
    cached = l2c.Sampler(backbone, graph=calibration.graph(0.7), any_guidance=True)
    for measure in (l2c.Calibration.measure, calibration.corrected):
        with pytest.raises(ValueError, match="measured on an uncached sampler, got one with a cache graph"):
            measure(cached)
    texts = [repr(shown) for shown in (calibration, calibration.ladder([0.8, 0.7]), cached)]
    assert all(len(text) < 300 and "\n" not in text for text in texts)
    assert "responses" in texts[0]
    assert "Ladder of 2" in texts[1]


def test_true_errors_have_a_bar_that_ends_whole(calibration, sampler, capsys):
    calibration.corrected(sampler, num_trajectories=1, batch_size=1)
    end = capsys.readouterr().err.rsplit("\r", 1)[-1]
    done, total = re.search(r"true errors: 100%.* (\d+)/(\d+) ", end).groups()
    assert done == total
    assert int(done) > 1
