"""Graphs and weights that travel with the package, by name from any folder."""

import zipfile
from pathlib import Path

import pytest

import l2c
from l2c.io.bundled import at_home, bundled_graph, checkpoint_folders, graph_names


def test_bundled_graphs_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"dit_digits_ddim20", "uvit_digits_dpm20", "dit_emoji_euler28", "dit_emoji_euler28_l2c"} <= set(
        graph_names()
    )
    for name in graph_names():
        graph = l2c.CacheGraph.load(name)
        assert graph == l2c.CacheGraph.load(bundled_graph(name))
        l2c.Sampler(l2c.load_backbone(graph.model), graph=graph)
    with pytest.raises(
        FileNotFoundError, match=r"no cache graph at dit_digits: neither .* did you mean dit_digits_ddim20"
    ):
        bundled_graph("dit_digits")
    with pytest.raises(FileNotFoundError, match=r"no cache graph at \.\./configs/x: neither a file"):
        l2c.CacheGraph.load("../configs/x")


def test_own_weights_come_first(tmp_path, monkeypatch):
    monkeypatch.setenv("L2C_CHECKPOINTS", str(tmp_path))
    assert checkpoint_folders()[0] == tmp_path
    monkeypatch.delenv("L2C_CHECKPOINTS")
    monkeypatch.chdir(tmp_path)
    assert checkpoint_folders()[0].absolute() == tmp_path / "checkpoints"


@pytest.mark.parametrize("path", [None, 3, b"a", [], "", "x" * 300, "a\0b", object()])
def test_what_is_no_path_is_one_sentence(path):
    with pytest.raises(
        ValueError, match=r"a path must be a text or a Path|a path is empty|is no name of a file"
    ) as refusal:
        at_home(path)
    assert str(refusal.value).isprintable()


def test_all_readers_take_the_home_folder_and_refuse_what_is_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    graph = l2c.CacheGraph.load("dit_digits_ddim20")
    graph.save("~/sub/graph.json")
    assert l2c.CacheGraph.load("~/sub/graph.json") == graph
    assert [path.name for path in tmp_path.rglob("*")] == ["sub", "graph.json"]
    for read in (l2c.CacheGraph.load, l2c.CacheGraphs.load, l2c.Calibration.load, l2c.Ladder.load):
        with pytest.raises(ValueError, match=r"is no name of a file|from_json reads it"):
            read(graph.to_json())


def test_a_package_in_a_zip_file_says_what_it_lacks(tmp_path, call_process):
    package = Path(l2c.__file__).parent
    with zipfile.ZipFile(tmp_path / "l2c.zip", "w") as archive:
        for path in package.rglob("*.py"):
            archive.write(path, path.relative_to(package.parent))
    for line in (
        "import l2c; l2c.CacheGraph.load('dit_digits_ddim20')",
        "import l2c.commands.frame.start as s; s.main()",
    ):
        done = call_process("-c", line, "sample", cwd=tmp_path, PYTHONPATH=str(tmp_path / "l2c.zip"))
        last = done.stderr.splitlines()[-1]
        assert f"l2c was imported from inside a file, {tmp_path / 'l2c.zip'}, but its presets" in last
        assert last.endswith("unpack the file, or run pip install . in a clone of l2c")
        assert ("Traceback" in done.stderr) == ("load" in line)  # of a command it is one sentence
