"""`l2c show` of a calibration: error against budget."""

import pytest
import torch

from l2c.calibration.calibration_file import VERSION
from l2c.calibration.cost import Cost
from l2c.calibration.grid import Grid
from l2c.commands import show
from l2c.diffusion import NoiseSchedule, make_solver
from l2c.graph.binding import Binding
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.collection import CacheGraphs
from l2c.graph.statistics import ERROR, SPREAD, WORTH
from l2c.policies.calibration import Calibration
from l2c.policies.ladder import Ladder
from l2c.report import figures


@pytest.fixture
def path(tmp_path):
    generator = torch.Generator().manual_seed(0)
    schedule = NoiseSchedule()
    solver = make_solver("ddim", schedule, 10)
    binding = Binding(
        model="toy",
        layers=tuple(f"b{i}.{kind}" for i in range(4) for kind in ("attn", "mlp")),
        solver="ddim",
        timesteps=solver.timesteps,
        solver_options={"eta": 0.0},
    )
    tensors = {
        "responses": torch.randn(10, 8, 6, 64, generator=generator),
        "responses_ahead": torch.randn(10, 8, 3, 64, generator=generator),
    }
    settings = {"responses": {"num_probes": 2}}
    known = {"num_evaluations": 10, "share": 0.5, "predicted": 1e-3, "true": 1e-3}
    Calibration(tensors, binding, settings, Grid.of(solver), schedule, Cost((20,) * 8, 1), corrections=(known,)).save(
        tmp_path / "c.safetensors"
    )
    return tmp_path / "c.safetensors"


def test_error_against_budget_is_drawn_and_told(path, tmp_path, capsys):
    show.main([str(path), f"output={tmp_path / 'curve.png'}", "num_steps=14"])
    told = capsys.readouterr().out
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert told.startswith("toy, ddim, 14 evaluations; expected squared error")
    assert told.count("evaluations' worth") >= 5
    assert VERSION == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["num_steps=x"], "num_steps must be a whole number of at least 2, got 'x'"),
        (["num_steps=1"], "num_steps must be a whole number of at least 2, got 1"),
        (["steps=4"], "unknown argument 'steps=4'"),
        (["output=a.txt"], "must end in .png"),
    ],
)
def test_bad_options_are_refused(path, options, sentence):
    with pytest.raises(ValueError) as refusal:
        show.main([str(path), *options])
    assert sentence in str(refusal.value)


def test_errors_that_are_not_known_are_told_without_a_picture(path, tmp_path, capsys):
    picture = tmp_path / "curve.png"
    show.main([str(path), "num_steps=25", f"output={picture}"])
    told = capsys.readouterr().out
    assert not picture.exists()
    assert "no error to draw: 25 evaluations lie 2.5 x as close in time as the 10 that" in told
    assert told.count("unknown +- unknown") == told.count("evaluations' worth") >= 5
    assert "wrote" not in told
    nameless = [
        graph.replace(measured={WORTH: graph.measured[WORTH], ERROR: None, SPREAD: None})
        for graph in Calibration.load(path).reachable([0.8, 0.7])
    ]
    Ladder(nameless).save(tmp_path / "ladder.json")
    show.main([str(tmp_path / "ladder.json"), f"output={picture}"])
    assert "no error to draw: the file gives none above 0" in capsys.readouterr().out


def test_a_graph_has_its_number_of_evaluations():
    with pytest.raises(ValueError, match="num_steps is for a calibration"):
        show.main(["dit_digits_ddim20", "num_steps=30"])


def test_a_ladder_is_drawn_as_its_calibration_is(path, tmp_path, capsys):
    Calibration.load(path).reachable(show.SHARES).save(tmp_path / "ladder.json")
    show.main([str(tmp_path / "ladder.json"), f"output={tmp_path / 'ladder.png'}"])
    of_ladder = capsys.readouterr().out
    assert (tmp_path / "ladder.png").stat().st_size > 1000
    show.main([str(path), f"output={tmp_path / 'ladder.png'}"])
    of_calibration = capsys.readouterr().out
    assert of_calibration.splitlines()[1:-1] == of_ladder.splitlines()[1:-1]
    for out, call in ((of_ladder, "Ladder.load"), (of_calibration, "Calibration.load")):
        *_, last = out.splitlines()
        assert last.startswith("next: ")
        assert call in last


def test_graphs_of_two_denoisers_are_drawn_one_below_the_other(tmp_path, capsys, monkeypatch):
    graphs = {
        name: CacheGraph(rows=rows, layers=layers, timesteps=times, model="toy", solver="EulerScheduler")
        for name, rows, layers, times in (
            ("transformer", [[True, True], [False, True]], ("b0.attn", "b0.mlp"), (9.0, 8.0)),
            ("transformer_2", [[True], [False], [True]], ("b0.attn",), (3.0, 2.0, 1.0)),
        )
    }
    CacheGraphs(graphs).save(tmp_path / "two.json")
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    show.main([str(tmp_path / "two.json"), f"output={tmp_path / 'two.png'}"])
    told = capsys.readouterr().out
    assert "transformer: " in told
    assert "transformer_2: " in told
    assert f"l2c.apply(pipe, l2c.CacheGraphs.load('{tmp_path / 'two.json'}'))" in told
    (image,) = drawn[0].axes[0].get_images()
    cells = image.get_array().filled(-1).tolist()
    assert [cell == -1 for row in cells for cell in row] == [False] * 4 + [False, True] * 3
    assert [row[0] for row in cells] == [cells[0][0], cells[1][0], cells[0][0], cells[1][0], cells[0][0]]
