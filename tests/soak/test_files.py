"""Files of strangers: mutated by the thousand, each is refused in one sentence or right; no crash, no hang."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import VALUES, archive_damaged, damaged, mutated, unsealed, verdict
from safetensors import safe_open
from safetensors.torch import save

import l2c
from l2c.calibration.measurements import Measurements
from l2c.data.latent_shards import Manifest, look_into
from l2c.drawing.image_archive import ArchiveImages
from l2c.drawing.image_shards import ImageShards, Samples
from l2c.evaluation.scores.features import ImageFeatures
from l2c.evaluation.scores.reference import load_reference
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.collection import CacheGraphs
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.training.checkpoints import VERSION, WholeCheckpoints, check_checkpoint


def test_mutated_graphs_are_refused_or_sample_finite_images(make_dit, make_graph, times, counted):
    net, source = make_dit(), random.Random(1)
    graph = make_graph(net, num_evaluations=4, provenance={"a": [1, {}]})
    slopes = tuple(0.5 for bit in graph.rows[3] if not bit)
    graph = graph.replace(reuse=("hold", "hold", "linear", "fitted"), slopes=((), (), (), slopes))
    content, noise, labels = (
        unsealed(json.loads(graph.to_json())),
        torch.randn(1, *net.input_shape),
        torch.tensor([1]),
    )
    refused = misfits = sampled = 0
    for _ in range(times(250, 10_000)):
        changed = mutated(content, source, VALUES, ("new", "routed", "slopes", "eta"))
        found, said = verdict(lambda changed=changed: CacheGraph.from_json(json.dumps(changed)))
        refused += said is not None
        if found is None:
            continue
        assert CacheGraph.from_json(found.to_json()) == found
        images, said = verdict(lambda found=found: l2c.Sampler(net, graph=found).sample(labels, noise=noise))
        misfits += said is not None
        sampled += images is not None
        assert images is None or bool(images.isfinite().all())
    counted(refused=refused, of_another_sampler=misfits, sampled=sampled)
    assert min(refused, misfits, sampled)


def test_mutated_files_of_several_graphs(make_dit, make_graph, tmp_path, times, counted):
    graph = make_graph(make_dit())
    CacheGraphs({"transformer": graph, "transformer_2": graph}).save(tmp_path / "g.json")
    content, source = json.loads((tmp_path / "g.json").read_text()), random.Random(2)
    content["graphs"] = {name: unsealed(one) for name, one in content["graphs"].items()}
    refused = 0
    for _ in range(times(100, 10_000)):
        (tmp_path / "g.json").write_text(json.dumps(mutated(content, source, VALUES)))
        refused += verdict(lambda: CacheGraphs.load(tmp_path / "g.json"))[1] is not None
    counted(refused=refused)
    assert refused


MANIFESTS = {
    "samples": Samples((1, 4, 4), 3, 2, True, {"seed": 0, "graph": None}),
    "latents": Manifest("vae", 0.5, 16, (4, 2, 2), 3, 3, 2, True),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_mutated_manifests(kind, tmp_path, times, counted):
    manifest, source = MANIFESTS[kind], random.Random(3)
    manifest.save(tmp_path)
    path = tmp_path / manifest.FILE
    whole, refused, tried = path.read_bytes(), 0, times(300, 10_000)
    for _ in range(tried):
        by_bytes = source.random() < 0.3
        changed = mutated(unsealed(json.loads(whole)), source, VALUES)
        path.write_bytes(damaged(whole, source) if by_bytes else json.dumps(changed).encode())
        found, said = verdict(lambda: type(manifest).load(tmp_path))
        refused += said is not None
        assert found in (None, manifest) or not by_bytes
        if found is not None:
            assert min(*found.shape, found.num_images, found.shard_size) >= 1
            verdict(lambda found=found: found.missing(tmp_path))
    counted(refused=refused, read=tried - refused)
    assert 0 < refused < tried


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": 1e30},
        {"num_images": 10**9, "shard_size": 1},
        {"shard_size": 0},
        {"shape": [1, 1]},
        {"shape": [10**9] * 3},
        {"shape": "abc"},
        {"colour": 1},
        {"version": 3},
        {"version": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_wrong_manifests_are_refused_at_once(kind, change, tmp_path):
    manifest = MANIFESTS[kind]
    manifest.save(tmp_path)
    path = tmp_path / manifest.FILE
    path.write_text(json.dumps({**unsealed(json.loads(path.read_text())), **change}))
    said = verdict(lambda: type(manifest).load(tmp_path))[1]
    assert f"is no manifest of {manifest.WORD}" in said
    path.write_text('{"format": "l2c-' + kind + '", "format": 1, ' + path.read_text()[1:])
    assert "occurs twice" in verdict(lambda: type(manifest).load(tmp_path))[1]


def test_shards_that_do_not_fit_their_manifest_are_refused(tmp_path):
    samples, latents = MANIFESTS["samples"], MANIFESTS["latents"]
    samples.save(tmp_path)
    for k, count in ((0, 2), (1, 1)):
        samples.write_shard(tmp_path, k, torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.zeros(count).long())
    assert torch.cat(list(ImageShards(tmp_path).batches(2))).shape == (3, 1, 4, 4)
    for images in (torch.zeros(2, 1, 4, 5).byte(), torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4).byte()):
        samples.path(tmp_path, 0).write_bytes(save({"images": images, "labels": torch.zeros(2).long()}))
        assert "holds images of shape" in verdict(lambda: list(ImageShards(tmp_path).batches(2)))[1]
    path, good = latents.path(tmp_path, 0), (torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2), torch.tensor([0, 2]))
    latents.write_shard(tmp_path, 0, *good, ["a.png"])
    assert look_into(path, latents) == (2, ["a.png"])
    for mean, labels in ((good[0][:, :1], good[2]), (good[0], torch.tensor([0, 3])), (good[0], torch.zeros(2))):
        path.write_bytes(save({"mean": mean.half(), "std": good[1].half(), "labels": labels}))
        assert verdict(lambda: look_into(path, latents))[1]


def test_mutated_calibrations(make_dit, tmp_path, times, counted):
    net, source, tried = make_dit(), random.Random(4), times(250, 10_000)
    sampler = l2c.Sampler(net, solver="ddim", num_evaluations=4)
    context = PolicyContext.of(sampler)
    tensors = {"layer_change": torch.rand(2, 4, net.num_layers)}
    calibration = Measurements(tensors, context.blank.binding, {"seed": 0}, cost=context.cost)
    path, refused = tmp_path / "c.safetensors", 0
    calibration.save(path)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["l2c"])
    del head["digest"]  # else every change would be refused for it
    for _ in range(tried):
        by_bytes = source.random() < 0.3
        changed = json.dumps(mutated(head, source, VALUES))
        path.write_bytes(damaged(whole, source) if by_bytes else save(tensors, {"l2c": changed}))
        found, said = verdict(lambda: Measurements.load(path))
        refused += said is not None
        if found is not None and by_bytes:
            found.save(path)
            assert path.read_bytes() == whole
        elif found is not None:
            verdict(lambda found=found: PolicyContext.of(sampler, found))
    counted(refused=refused, read=tried - refused)
    assert 0 < refused < tried


def whole_checkpoint():
    """Return the weights and the content of a checkpoint of two parameters."""
    weights = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    parameters = [torch.nn.Parameter(value.clone()) for value in weights.values()]
    optimiser = torch.optim.AdamW(parameters)
    sum(p.sum() for p in parameters).backward()
    optimiser.step()
    return weights, {
        "state_dict": {f"net.{name}": value for name, value in weights.items()},
        "optimizer_states": [optimiser.state_dict()],
        **{"lr_schedulers": [], "loops": {}, "global_step": 5, "epoch": 0},
        "l2c_run": {"version": VERSION, "settings": {"seed": 0}},
    }


def test_damaged_checkpoints(tmp_path, times, counted):
    source, (weights, content) = random.Random(5), whole_checkpoint()
    path, refused = Path(tmp_path / "last.ckpt"), 0
    WholeCheckpoints().save_checkpoint(content, path)
    whole, tried = path.read_bytes(), times(120, 10_000)
    for _ in range(tried):
        path.write_bytes(damaged(whole, source))
        check = lambda: check_checkpoint(path, "net.", weights, settings={"seed": 0}, max_steps=9)  # noqa: E731
        said = verdict(check)[1]
        refused += said is not None
        if said is None:  # what was damaged is read by nobody
            assert repr(torch.load(path, weights_only=True)) == repr(torch.load(io.BytesIO(whole), weights_only=True))
    counted(refused=refused, read=tried - refused)
    assert refused


class Pixels:
    """Features that are the first pixels of an image."""

    name, channels = "digits", 1

    def __call__(self, images):
        """Return features of images (N, 1, H, W)."""
        pixels = images.flatten(1)[:, :8].float()
        return ImageFeatures(pixels, pixels, None)


STATISTICS = {"mu": np.zeros(8), "sigma": np.eye(8), "mu_s": np.zeros(8), "sigma_s": np.eye(8)}
ARCHIVES = {
    "statistics": (np.savez, STATISTICS),
    "packed": (np.savez_compressed, STATISTICS),
    "images": (np.savez, {"arr_0": np.zeros((6, 8, 8, 1), np.uint8), "arr_1": np.arange(6)}),
    "both": (np.savez, {"arr_0": np.zeros((6, 8, 8, 1), np.uint8), **STATISTICS}),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_mutated_archives(kind, tmp_path, times, counted):
    save_as, arrays = ARCHIVES[kind]
    source, refused, tried = random.Random(6), 0, times(150, 10_000)
    path = tmp_path / "a.npz"
    save_as(path, **arrays)
    whole = path.read_bytes()
    for _ in range(tried):
        path.write_bytes(archive_damaged(whole, source))
        refused += verdict(lambda: load_reference(path, Pixels(), progress=False))[1] is not None
        if kind == "images":
            verdict(lambda: list(ArchiveImages(path).batches(4)))
    counted(refused=refused, read=tried - refused)
    assert 0 < refused < tried


def test_mutated_scores(make_dit, tmp_path, times, counted):
    context = PolicyContext.of(l2c.Sampler(make_dit(), solver="ddim", num_evaluations=4))
    path, source, refused, tried = tmp_path / "s.npy", random.Random(7), 0, times(100, 10_000)
    np.save(path, np.random.default_rng(0).random((4, context.blank.num_layers)))
    whole = path.read_bytes()
    for _ in range(tried):
        path.write_bytes(damaged(whole[:140], source) + whole[140:])
        refused += verdict(lambda: make_graph("top_k", context, score=str(path), budget=0.5))[1] is not None
    counted(refused=refused, read=tried - refused)
    assert 0 < refused < tried
