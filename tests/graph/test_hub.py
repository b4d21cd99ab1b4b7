"""Folders with a graph and its card; the Hub itself is out of reach of a test."""

import pytest
import torch

import l2c
from l2c.sampling.correction import Correction, save_correction


def test_a_folder_gives_back_its_graph(make_dit, make_graph, tmp_path):
    graph = make_graph(make_dit(), provenance={"method": "gram"}, measured={"mse": 0.25})
    picture = tmp_path / "graph.png"
    picture.write_bytes(b"png")
    graph.save_pretrained(tmp_path / "repo", files=[picture])
    assert l2c.CacheGraph.from_pretrained(tmp_path / "repo") == graph
    assert (tmp_path / "repo" / "graph.png").read_bytes() == b"png"
    card = (tmp_path / "repo" / "README.md").read_text()
    assert "| mse | 0.25 |" in card
    assert "![graph.png](graph.png)" in card
    assert "l2c.apply(pipe, graph) " in card
    assert graph.summary() in card
    assert '"method": "gram"' in card


def test_a_correction_comes_along(make_dit, make_graph, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install '.[diffusers]'")
    graph = make_graph(make_dit())
    rows = torch.ones(graph.num_reused, 32)
    graph = save_correction(tmp_path / "c.safetensors", graph, rows, 0 * rows)
    graph.save_pretrained(tmp_path / "repo")
    asked = []

    def download(repo, name, revision):
        asked.append((repo, name, revision))
        return str(tmp_path / "repo" / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    loaded = l2c.CacheGraph.from_pretrained("somebody/graph", revision="v1")
    assert asked == [("somebody/graph", f"cache_graph.{end}", "v1") for end in ("json", "safetensors")]
    assert torch.equal(Correction.of(loaded).scale, rows)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has no cache_graph\.json; give the folder that save_pretr"):
        l2c.CacheGraph.from_pretrained(tmp_path)
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install '.[diffusers]'")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(OSError, match="no folder here, and the Hub says ConnectionError"):
        l2c.CacheGraph.from_pretrained("somebody/graph")


def test_push_sends_graph_and_card(make_dit, make_graph, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install '.[diffusers]'")
    sent = {}

    class Api:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo, private, exist_ok):
            sent["repo"] = (repo, private)

        def upload_folder(self, repo_id, folder_path, commit_message):
            sent["files"] = {path.name for path in folder_path.iterdir()}
            return "address"

    monkeypatch.setattr(hub, "HfApi", Api)
    assert make_graph(make_dit()).push_to_hub("somebody/graph", private=True, token="t") == "address"
    assert sent == {"token": "t", "repo": ("somebody/graph", True), "files": {"cache_graph.json", "README.md"}}
