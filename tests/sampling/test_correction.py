"""Scales and shifts of reused layers: applied, written beside the graph, refused where they do not belong."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

import l2c
from l2c.diffusion import Guidance
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.correction_file import CorrectionFile
from l2c.sampling.correction import Correction, plan_digest, reused_entries, save_correction
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler, seeded_noise


@pytest.fixture
def corrected(backbone, make_graph, tmp_path):
    graph = make_graph(backbone)
    shape = (len(reused_entries(graph)), 32)
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return save_correction(tmp_path / "c.safetensors", graph, scale, shift, steps=3), scale, shift


def test_what_stands_in_is_scaled_and_shifted(corrected, backbone):
    graph, scale, shift = corrected
    denoiser = Denoiser(backbone, torch.tensor([1, 2]), Guidance(backbone.conventions.guidance), graph)
    noise = seeded_noise(backbone.input_shape, 0, 2)
    times = [torch.full((2,), t) for t in graph.timesteps[:2]]
    with torch.no_grad():
        denoiser(noise, graph.timesteps[0])
        output = denoiser(noise, graph.timesteps[1])
        _, outputs = backbone.forward_cached(noise, times[0], denoiser.y, graph.rows[0])
        entries = [(i, layer) for i, (e, layer) in enumerate(reused_entries(graph)) if e == 1]
        cache = [None] * graph.num_layers
        for i, layer in entries:
            cache[layer] = scale[i] * outputs[layer] + shift[i]
        expected, _ = backbone.forward_cached(noise, times[1], denoiser.y, graph.rows[1], cache)
    assert entries
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_scale_one_and_shift_nought_change_nothing(backbone, make_graph, tmp_path):
    graph = make_graph(backbone)
    shape = (len(reused_entries(graph)), 32)
    same = save_correction(tmp_path / "c.safetensors", graph, torch.ones(shape), torch.zeros(shape))
    labels, noise = torch.tensor([1, 2]), seeded_noise(backbone.input_shape, 0, 2)
    images = Sampler(backbone, graph=same).sample(labels, noise=noise)
    assert torch.equal(images, Sampler(backbone, graph=graph).sample(labels, noise=noise))


def test_file_travels_with_the_graph(corrected, tmp_path):
    graph, scale, _ = corrected
    path = tmp_path / "elsewhere" / "best.json"
    graph.save(path)
    assert (path.parent / "best.safetensors").is_file()
    content = json.loads(path.read_text())
    jsonschema.validate(
        content, json.loads((Path(l2c.__file__).parent / "graph" / "cache_graph.schema.json").read_text())
    )
    loaded = CacheGraph.load(path)
    assert loaded == graph
    assert torch.equal(Correction.of(loaded).scale, scale)
    assert "best.safetensors" in loaded.summary()


def test_files_that_do_not_belong_are_refused(corrected, backbone, make_graph, tmp_path):
    graph, scale, shift = corrected
    path = graph.correction.path
    other = make_graph(backbone, rows=[[True] * graph.num_layers, [False] * graph.num_layers] * 3)
    with pytest.raises(ValueError, match="was made for another graph, with other rows"):
        Sampler(backbone, graph=other.replace(correction=graph.correction))
    graph.save(tmp_path / "g.json")
    save_correction(path, graph, scale + 1, shift)
    with pytest.raises(ValueError, match="does not belong to this graph: its digest is sha256"):
        Sampler(backbone, graph=graph)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing; copy it beside the graph"):
        Sampler(backbone, graph=graph)
    save_file({"x": torch.zeros(1)}, path)
    foreign = graph.replace(correction=type(graph.correction).of(path))
    with pytest.raises(ValueError, match="holds no scales and shifts of l2c"):
        Sampler(backbone, graph=foreign)
    text = (tmp_path / "g.json").read_text().replace('"g.safetensors"', '"../g.safetensors"')
    with pytest.raises(ValueError, match="must be the name of a file beside the graph"):
        CacheGraph.from_json(text)


# --- files ----------------------------------------------------------------------------------------------------


def test_the_digest_of_a_plan_is_that_of_its_slopes_too(make_dit, make_graph):
    graph = make_graph(make_dit())
    held = graph.replace(reuse=("hold",) * 6)
    linear = graph.replace(reuse=("linear",) * 6)
    assert plan_digest(graph) == plan_digest(held) != plan_digest(linear)
    # Files of graphs without slopes were written with this digest, and must be known again.
    pinned = CacheGraph(
        rows=((True, True), (False, True)), layers=("a", "b"), timesteps=(2.0, 1.0), model="m", solver="ddim"
    )
    assert plan_digest(pinned) == "sha256:227bec88caa2d646985d14893c4a4f4dbdbfe30e58f8468ce499be6b904a28d9"


def test_numbers_that_are_none_are_refused_in_a_correction(make_dit, make_graph, tmp_path):
    graph = make_graph(make_dit())
    rows = torch.ones(graph.num_reused, 32)
    broken = rows.clone()
    broken[1, 3] = float("nan")
    with pytest.raises(ValueError, match="scales and shifts must be finite numbers"):
        save_correction(tmp_path / "c.safetensors", graph, broken, rows)
    header = json.dumps({"format": "l2c-scale-shift", "plan": plan_digest(graph), "settings": {}})
    save_file({"scale": broken, "shift": rows}, tmp_path / "c.safetensors", metadata={"l2c": header})
    with pytest.raises(ValueError, match="holds scales or shifts that are no finite numbers"):
        Correction.of(graph.replace(correction=CorrectionFile.of(tmp_path / "c.safetensors")))


def test_no_file_of_others_is_written_over(make_dit, make_graph, tmp_path):
    graph = make_graph(make_dit())
    rows = torch.ones(graph.num_reused, 32)
    weights = tmp_path / "dit_digits.safetensors"
    save_file({"w": torch.ones(3)}, weights)
    before = weights.read_bytes()
    corrected = save_correction(tmp_path / "made.safetensors", graph, rows, 0 * rows)
    with pytest.raises(ValueError, match="exists and is no correction"):
        save_correction(weights, graph, rows, rows)
    for _ in range(2):  # its own file may be written over
        corrected.save(tmp_path / "dit_digits.json")
        loaded = CacheGraph.load(tmp_path / "dit_digits.json")
        assert loaded.correction.path.name == "dit_digits.correction.safetensors"
        assert torch.equal(Correction.of(loaded).scale, rows)
    loaded.save(tmp_path / "dit_digits.json")  # where it already is
    (tmp_path / "dit_digits.correction.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"dit_digits\.correction\.safetensors exists and is no correction"):
        corrected.save(tmp_path / "dit_digits.json")
    assert weights.read_bytes() == before
