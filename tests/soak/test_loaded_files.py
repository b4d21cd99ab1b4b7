"""All else that is read from files: mutated by the thousand, each is refused in one sentence or taken as it says."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutations import VALUES, archive_damaged, damaged, mutated, tensors_damaged, unsealed, verdict
from safetensors.torch import load_file, save_file

import l2c
from l2c.backbones.weights import load_strict, load_weights
from l2c.data.latent_shards import LatentShards, Manifest
from l2c.drawing.image_shards import ImageShards, Samples
from l2c.graph.correction_file import CorrectionFile
from l2c.graph.statistics import ERROR, SPREAD, WORTH
from l2c.integrations.l2c_routers import import_l2c_router
from l2c.integrations.smoothcache import import_smoothcache
from l2c.report.samples import SampleRow, differences, pixels, value_range
from l2c.sampling.correction import save_correction
from l2c.testbeds.emoji import emoji

TENSORS = (
    torch.zeros(3),
    torch.full((2,), torch.nan),
    torch.zeros(2, dtype=torch.int64),
    torch.zeros(2, 2).to_sparse(),
)


@dataclass
class Kind:
    """A kind of file.

    Attributes:
        path: an unchanged file.
        change: returns the bytes of a changed one.
        read: reads the file; what comes back is used as its users do.
        right: checks of what was read that it is what the file says.

    """

    path: Path
    change: Callable[[random.Random], bytes]
    read: Callable[[], Any]
    right: Callable[[Any], None] = lambda found: None


def of_json(path: Path, digest: bool = False) -> Callable[[random.Random], bytes]:
    """Return the mutator of a JSON file, by its content or, a third of the time, by its bytes."""
    whole = path.read_bytes()
    content = json.loads(whole)

    def change(source: random.Random) -> bytes:
        if source.random() < 0.33:
            return damaged(whole, source)
        return json.dumps(mutated(content if digest else unsealed(content), source, VALUES)).encode()

    return change


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def of_pickle(path: Path) -> Callable[[random.Random], bytes]:
    """Return the mutator of a file of torch.save, by its content or, a third of the time, by its bytes."""
    whole = path.read_bytes()
    content = torch.load(io.BytesIO(whole), weights_only=True)

    def change(source: random.Random) -> bytes:
        if source.random() < 0.33:
            return damaged(whole, source)
        return pickled(mutated(content, source, (*VALUES, *TENSORS), ("new", "0.prob", "state_dict")))

    return change


def of_tensors(path: Path) -> Callable[[random.Random], bytes]:
    """Return the mutator of a safetensors file."""
    whole = path.read_bytes()
    return lambda source: tensors_damaged(whole, source)


def graph_bytes(folder, net, graph):
    path = folder / "g.json"
    graph.save(path)
    whole = path.read_bytes()

    def right(found):
        assert found == graph  # by its digest, any other is refused

    return Kind(path, lambda source: damaged(whole, source), lambda: l2c.CacheGraph.load(path), right)


def ladder(folder, net, graph):
    path = folder / "l.json"
    graphs = (graph.replace(measured={WORTH: 2.0 + i, ERROR: 0.1, SPREAD: 0.1}) for i in range(2))
    l2c.Ladder(graphs).save(path)
    content = json.loads(path.read_bytes())
    content["graphs"] = {name: unsealed(one) for name, one in content["graphs"].items()}
    path.write_text(json.dumps(content))

    def right(found):
        found.save(path)
        assert list(l2c.Ladder.load(path)) == list(found)

    return Kind(path, of_json(path), lambda: l2c.Ladder.load(path), right)


def correction(folder, net, graph):
    """The graph names the changed file by its digest, as a stranger would have it."""
    path = folder / "c.safetensors"
    rows = 1 + 0.1 * torch.rand(graph.num_reused, 32)
    save_correction(path, graph, rows, 0.1 * rows)
    noise = torch.randn(1, *net.input_shape)

    def read():
        named = graph.replace(correction=CorrectionFile.of(path))
        return l2c.Sampler(net, graph=named).sample(torch.tensor([1]), noise=noise)

    def right(images):
        assert bool(images.isfinite().all())

    return Kind(path, of_tensors(path), read, right)


def routers(folder, net, graph):
    path, count = folder / "r.pth", 4
    torch.save({"routers": {f"{i}.prob": torch.linspace(-3, 3, net.num_layers).roll(i) for i in range(count)}}, path)

    def read():
        return import_l2c_router(path, net, solver="ddim", num_evaluations=count, threshold=0.3)

    def right(found):
        content = torch.load(path, map_location="cpu", weights_only=True)
        logits = content.get("routers", content) if isinstance(content.get("routers"), dict) else content
        for evaluation, i in ((1, 2), (3, 0)):
            bits = [float(x) > np.log(0.3 / 0.7) for x in logits[f"{i}.prob"].flatten()]
            assert list(found.rows[evaluation]) == bits
        assert all(found.rows[0])
        assert all(found.rows[2])

    return Kind(path, of_pickle(path), read, right)


def smoothcache(folder, net, graph):
    path = folder / "s.json"
    path.write_text(json.dumps({"attn": [1, 0, 1, 0], "mlp-0": [1, 1, 0, 0], "mlp-1": [1, 0, 0, 1]}))

    def right(found):
        content = json.loads(path.read_bytes())
        for layer, (kind, block) in enumerate((kind, block) for block in range(2) for kind in ("attn", "mlp")):
            bits = content.get(f"{kind}-{block}", content.get(kind, [1] * found.num_evaluations))
            assert [row[layer] for row in found.rows] == [bool(bit) for bit in bits], content

    return Kind(path, of_json(path), lambda: import_smoothcache(path, net), right)


def weights(folder, net, graph, suffix="safetensors"):
    path = folder / f"w.{suffix}"
    state = {"a.weight": torch.rand(3, 2), "a.bias": torch.rand(3), "b.weight": torch.rand(2, 3)}
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(3, 2, bias=False)})
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": dict(state), "ema": state, "epoch": 3}, path)

    def read():
        load_strict(module, load_weights(path), str(path))
        return module.state_dict()

    def right(found):
        content = load_file(path) if suffix == "safetensors" else load_weights(path)
        for name, value in found.items():
            assert value.isfinite().all()
            assert torch.equal(value, content[name].to(value.dtype)), name

    return Kind(path, (of_tensors if suffix == "safetensors" else of_pickle)(path), read, right)


def pickled_weights(folder, net, graph):
    return weights(folder, net, graph, "pt")


def latents(folder, net, graph):
    manifest = Manifest("vae", 0.5, 16, (4, 2, 2), 3, 3, 3, True)
    manifest.save(folder)
    path = manifest.path(folder, 0)
    manifest.write_shard(
        folder, 0, torch.rand(3, 4, 2, 2), torch.rand(3, 4, 2, 2), torch.tensor([0, 1, 2]), ["a.png"]
    )

    def read():
        shards = LatentShards(folder)
        return [shards[i] for i in range(len(shards))]

    def right(found):
        for mean, std, label in found:
            assert mean.shape == std.shape == (4, 2, 2)
            assert mean.dtype == std.dtype == torch.float16
            assert mean.isfinite().all()
            assert std.isfinite().all()
            assert 0 <= int(label) < 3

    return Kind(path, of_tensors(path), read, right)


def images(folder, net, graph):
    samples = Samples((1, 4, 4), 3, 3, True, {"seed": 0})
    samples.save(folder)
    samples.write_shard(folder, 0, torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3).long())
    path = samples.path(folder, 0)

    def read():
        shards = ImageShards(folder)
        return torch.cat(list(shards.batches(2))), shards.labels()

    def right(found):
        assert found[0].shape == (3, 1, 4, 4)
        assert found[1].shape == (3,)

    return Kind(path, of_tensors(path), read, right)


def sample_row(folder, net, graph):
    path = folder / "row.safetensors"
    SampleRow.of("method", torch.rand(8, 1, 4, 4), torch.rand(8, 1, 4, 4), first=2, worst=1).save(path)

    def right(row):
        drawn = pixels(row.images, value_range(row.target)), differences(row)
        for _, error, picture, other in zip(row.noises, row.errors, *drawn, strict=True):
            assert error >= 0
            assert picture.shape == other.shape
        assert row.worst is None or row.worst >= 0

    return Kind(path, of_tensors(path), lambda: SampleRow.load(path), right)


def pictures(folder, net, graph):
    path = folder / "e.npz"
    labels = np.arange(6) % 10
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.savez(path, images=images, labels=labels, families=labels, toned=np.arange(6) > 3)
    whole = path.read_bytes()

    def right(found):
        assert found.images.shape == (len(found.labels), 3, 32, 32)
        assert found.images.dtype == torch.uint8
        assert found.labels.shape == found.families.shape == found.toned.shape
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < 10

    return Kind(path, lambda source: archive_damaged(whole, source), lambda: emoji(path), right)


KINDS = (
    *(graph_bytes, ladder, correction, routers, smoothcache, weights, pickled_weights, latents, images, sample_row),
    pictures,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_is_changed_is_refused_or_taken_as_it_says(make, make_dit, make_graph, tmp_path, times, counted):
    net, source, tried = make_dit(), random.Random(make.__name__), times(60, 10_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = make(tmp_path, net, make_graph(net, num_evaluations=4))
    kind.right(kind.read())  # the unchanged one
    refused = 0
    for _ in range(tried):
        kind.path.write_bytes(kind.change(source))
        found, said = verdict(kind.read)
        refused += said is not None
        if said is None:
            kind.right(found)
    counted(refused=refused, read=tried - refused)
    assert refused
