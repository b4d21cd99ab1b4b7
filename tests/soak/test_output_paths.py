"""Odd paths for what commands write: the file is there as named, or one sentence; what was there before stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cheap import commands
from forked import run
from matplotlib.figure import Figure
from test_kills import inputs  # noqa: F401 - a fixture

FOREIGN = b"\xff\xd8 a photograph, of which there is no other " * 9
IN_SUITE = ("show", "graph -> schedule")
SUFFIXES = {
    **{"calibrate": ".safetensors", "train-backbone": ".safetensors", "train-classifier": ".safetensors"},
    **{"import": ".json", "graph -> schedule": ".json", "show": ".png", "download": ".pt", "evaluate": ".npz"},
}


def line_of(name, inputs):  # noqa: F811
    """Return a command without its output, and how the output is said."""
    lines = {
        "graph -> schedule": ["import", "graph=dit_digits_ddim20", "hydra.run.dir=run"],
        "show": ["show", "dit_digits_ddim20"],
        "download": ["download", "dit_xl2", "--file", str(inputs / "router.pt")],
        "evaluate": ["evaluate", "samples=digits", "reference=digits", "hydra.run.dir=run"],
    }
    line = lines.get(name) or [part for part in commands(inputs)[name].line if not part.startswith("output=")]
    form = {"show": "output={}", "download": "--output={}", "evaluate": "save_statistics='{}'"}
    return line, form.get(name, "output='{}'")


def prepared(folder, suffix):
    """Put into a folder what outputs may meet; return the files that must stay as they are."""
    (folder / "dir").mkdir(parents=True)
    kept = [folder / "file.txt", folder / f"foreign{suffix}"]
    for path in kept:
        path.write_bytes(FOREIGN)
    torch.save({"a": torch.zeros(1)}, folder / "weights.pt")
    links = {"dangling": "nowhere/x", "todir": "dir", "toforeign": "file.txt", "loop": f"loop{suffix}"}
    for name, target in links.items():
        (folder / f"{name}{suffix}").symlink_to(target)
    return kept


def paths_of(suffix):
    """Return the paths and whether they can be written; None where a command may say either."""
    wrong = [
        *("dir", "new/", "file.txt", f"file.txt/x{suffix}", f"foreign{suffix}", f"todir{suffix}", "-", "..", "."),
        *(
            f"toforeign{suffix}",
            f"loop{suffix}",
            f"{'x' * 300}{suffix}",
            "/dev/null",
            "/dev/full",
            f"/proc/x{suffix}",
        ),
    ]
    right = [
        *(f"dangling{suffix}", f"~/home{suffix}", f"a b{suffix}", f"\u00fc{suffix}", f"[x]{suffix}", f"-{suffix}"),
        *(f"{'x' * 240}{suffix}", f"sub/deep/x{suffix}", f"a=b{suffix}", f"a,b{suffix}", f"dir/../x{suffix}"),
    ]
    return [*((path, False) for path in wrong), *((path, True) for path in right)]


@pytest.mark.parametrize("name", SUFFIXES)
def test_odd_outputs_are_written_as_named_or_refused(name, tmp_path, inputs, times, counted, monkeypatch):  # noqa: F811
    step = times(5 if name in IN_SUITE else 0, 1)  # in the suite every fifth
    (line, form), suffix = line_of(name, inputs), SUFFIXES[name]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tried = paths_of(suffix)[::-step][::-1]
    for i, (output, right) in enumerate(tried):
        folder = tmp_path / str(i)
        kept = prepared(folder, suffix)
        ended = run([*line, form.format(output)], folder)
        assert (ended.code == 0) == right, (output, ended.code, ended.err[-400:])
        assert right or ended.sentence, (output, ended.err[-400:])
        assert all(path.read_bytes() == FOREIGN for path in kept), output
        place = Path(output.replace("~", str(tmp_path / "home")))
        assert not right or (folder / place).is_file(), output
        assert right or not (folder / "run").exists(), output
        again = run([*line, form.format(output)], folder) if right and i == len(tried) - 1 else ended
        assert again.code == ended.code, again.err[-400:]  # an earlier result may be replaced
    counted(tried=len(tried))


def visible(folder):
    """Return the files below a folder without hidden ones, and without what Lightning numbers by itself."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if not any(part.startswith(".") for part in path.parts)]


@pytest.mark.parametrize("name", list(commands(Path())))
def test_nothing_of_others_in_a_run_folder_is_overwritten(name, tmp_path, inputs, times, counted):  # noqa: F811
    step = times(2 if name in ("graph", "sample") else 0, 1)
    line = commands(inputs)[name].line
    assert run(line, tmp_path / "whole").code == 0
    written = visible(tmp_path / "whole" / "run")
    for i, file in enumerate(written[::step]):
        folder = tmp_path / str(i)
        (folder / "run" / file).parent.mkdir(parents=True)
        (folder / "run" / file).write_bytes(FOREIGN)
        ended = run(line, folder)
        assert ended.sentence, (file, ended.code, ended.err[-400:])
        assert Path(file).name in ended.sentence, ended.sentence
        assert (folder / "run" / file).read_bytes() == FOREIGN
    again = run(line, tmp_path / "whole")
    assert again.code == 0, again.err  # what the command wrote itself is replaced
    counted(files=len(written[::step]))


@pytest.mark.parametrize("name", list(commands(Path())))
def test_a_drawing_of_others_beside_an_earlier_result_stays(name, tmp_path, inputs, times, counted):  # noqa: F811
    most = times(1 if name == "graph" else 0, 100)
    line = commands(inputs)[name].line
    assert run(line, tmp_path).code == 0
    drawn = [file for file in visible(tmp_path / "run") if Path(file).suffix in (".png", ".svg") and "/" not in file]
    for file in drawn[:most]:
        path = tmp_path / "run" / file
        before = path.read_bytes()
        Figure().savefig(path)
        theirs = path.read_bytes()
        ended = run(line, tmp_path)
        assert ended.sentence, (file, ended.code, ended.err[-400:])
        assert file in ended.sentence
        assert path.read_bytes() == theirs
        path.write_bytes(before)
    counted(files=len(drawn[:most]))
