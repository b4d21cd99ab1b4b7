"""Many images: the same ones on one process, on two, and after a kill; read back whole."""

import errno
import os
import socket
import warnings
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from l2c.backbones.presets import load_backbone
from l2c.commands.frame.drawing import draw_by
from l2c.commands.frame.sampler import make_sampler
from l2c.commands.frame.settings import checked
from l2c.data.latent_shards import Manifest
from l2c.drawing.image_archive import ArchiveImages
from l2c.drawing.image_shards import ImageShards, Samples, to_pixels
from l2c.drawing.lit_drawing import LitSampler, image_labels
from l2c.drawing.run import sample_images
from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.sampler import Sampler, seeded_noise

ROOT = Path(__file__).resolve().parents[2]
CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


@pytest.fixture
def draw(make_dit, tmp_path):
    """Return a function that draws 7 images in shards of 4, two at a time."""
    dit = make_dit()

    def run(name, *, solver="ddpm", num_images=7, **changes):
        sampler = Sampler(dit, solver=solver, num_evaluations=3, cfg_scale=2.0)
        settings = {"batch_size": 2, "shard_size": 4, "seed": 5, "trainer": CPU, **changes}
        return sample_images(sampler, tmp_path / name, num_images=num_images, **settings)

    return run


def test_images_are_the_samplers_own(draw, make_dit):
    """Also with noise at every step: it belongs to the image, not to its batch."""
    drawn = draw("run")
    assert (drawn.num_images, drawn.first_process) == (7, True)
    shards = ImageShards(drawn.folder)
    pixels = torch.cat(list(shards.batches(3)))
    labels = torch.arange(7) % 5
    assert torch.equal(shards.labels(), labels)
    sampler = Sampler(make_dit(), solver="ddpm", num_evaluations=3, cfg_scale=2.0)
    alone = torch.cat([sampler.sample(labels[i : i + 1], seed=5, first_image=i) for i in range(7)])
    assert pixels.shape == (7, 4, 8, 8)
    assert (pixels.int() - to_pixels(alone).int()).abs().max() <= 1  # kernels differ with the batch
    assert len(pixels.flatten(1).unique(dim=0)) == 7


def test_a_killed_run_continues(draw, monkeypatch):
    whole = draw("whole")
    step = LitSampler.predict_step
    calls = []

    def dying(self, batch, batch_index):
        calls.append(batch)
        if len(calls) == 4:
            raise MemoryError("killed")
        step(self, batch, batch_index)

    monkeypatch.setattr(LitSampler, "predict_step", dying)
    with pytest.raises(MemoryError):
        draw("broken")
    monkeypatch.setattr(LitSampler, "predict_step", step)
    broken = whole.folder.parent / "broken"
    assert {path.name for path in broken.iterdir()} == {"samples.json", "samples-00000-of-00002.safetensors"}
    with pytest.raises(ValueError, match=r"incomplete: 1 of 2 shards are missing; run l2c sample-many again"):
        ImageShards(broken)
    assert draw("broken").num_images == 3
    for path in whole.folder.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes()
    assert draw("broken").num_images == 0  # nothing is left to do


def test_compiled_samplers_get_whole_batches_alone(draw, make_dit, monkeypatch):
    """What fills up a shard's last batch is dropped; the images stay the same."""
    drawn = draw("plain")
    sizes, sample = [], Sampler.sample

    def counting(self, labels, **options):
        sizes.append(len(labels))
        assert self.compiled
        return sample(self, labels, **options)

    monkeypatch.setattr(Sampler, "sample", counting)
    monkeypatch.setattr(Sampler, "compile", partialmethod(Sampler.compile, backend="eager"))
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # falling back would be no test
        compiled = draw("compiled", batch_size=3, settings={"compile": True, "capture": False})
    torch._dynamo.reset()
    assert compiled.num_images == 7
    assert sizes == [3, 3, 3]  # images 0, 1, 2 and 3 of the first shard, 4, 5, 6 of the second
    plain, ours = (ImageShards(run.folder) for run in (drawn, compiled))
    assert torch.equal(ours.labels(), plain.labels())
    pixels = [torch.cat(list(shards.batches(7))).int() for shards in (plain, ours)]
    assert (pixels[1] - pixels[0]).abs().max() <= 1  # kernels differ with the batch


def test_the_commands_settings_reach_the_sampler(tmp_path):
    """Where the cache lies and in what; other images are another folder's."""

    def run(*changes):
        small = ["num_images=3", "batch_size=2", "shard_size=2", "+trainer.enable_progress_bar=false"]
        graph = [f"graph={ROOT / 'checkpoints' / 'dit_digits_ddim20.json'}", "trainer.accelerator=cpu"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("sample_many", [*graph, *small, *changes])
        return draw_by(cfg, tmp_path)

    images = ImageShards(run("cache_dtype=bf16", "cache_device=cpu").folder)
    assert images.samples.settings["cache_dtype"] == "bfloat16"
    backbone, graph = load_backbone("dit_digits"), CacheGraph.load(ROOT / "checkpoints" / "dit_digits_ddim20.json")
    for dtype, equal in ((torch.bfloat16, True), (None, False)):
        sampler = Sampler(backbone, graph=graph, cfg_scale=1.5, cache_dtype=dtype)
        expected = to_pixels(sampler.sample([0, 1], seed=0))
        assert torch.equal(next(images.batches(2)), expected) == equal
    with pytest.raises(ValueError, match="other settings: cache_dtype is bfloat16 there, null here"):
        run()


@pytest.mark.parametrize("command", ["sample", "sample_many"])
def test_a_solver_is_named_without_a_model(command):
    """The number of evaluations and the guidance scale are then the graph's, else the model's published ones."""

    def sampler(*changes):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(command, list(changes))
        checked(command, cfg)
        return make_sampler(cfg)

    plain = sampler("solver=ddpm")
    assert (plain.solver.name, plain.solver.num_evaluations, plain.guidance.scale) == ("ddpm", 20, 1.5)
    assert sampler("solver=ddim", "graph=dit_digits_ddim20").graph is not None
    with pytest.raises(ValueError, match="made for solver ddim, got ddpm"):
        sampler("solver=ddpm", "graph=dit_digits_ddim20")


def test_the_archive_is_what_evaluators_read(draw):
    drawn = draw("run", solver="ddim")
    with np.load(drawn.write_archive()) as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert (images.shape, images.dtype) == ((7, 8, 8, 4), np.uint8)
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    pixels = torch.cat(list(ImageShards(drawn.folder).batches(2)))
    np.testing.assert_array_equal(images, pixels.permute(0, 2, 3, 1).numpy())


def test_archives_are_read_a_batch_at_a_time(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images)
    found = ArchiveImages(tmp_path / "images.npz")
    assert (len(found), found.shape) == (5, (3, 6, 6))
    batches = list(found.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), images)


def test_latents_become_images(draw):
    class Doubling:
        scale = 0.5

        def decode(self, latents):
            return latents[:, :3].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / self.scale

    drawn = draw("run", solver="ddim", vae=Doubling(), vae_name="doubling", num_images=2)
    assert ImageShards(drawn.folder).shape == (3, 16, 16)
    plain = draw("plain", solver="ddim", num_images=2)
    small = torch.cat(list(ImageShards(plain.folder).batches(2)))[:, :3].float()
    large = torch.cat(list(ImageShards(drawn.folder).batches(2)))[:, :, ::2, ::2].float()
    expected = (2 * (small - 128) + 128).clamp(0, 255)
    inside = (small > 1) & (small < 254)
    assert ((large - expected).abs() <= 2)[inside].all()


def test_labels_depend_on_the_image_alone():
    assert image_labels(range(3, 8), 4, "balanced", 0).tolist() == [3, 0, 1, 2, 3]
    drawn = image_labels(range(100), 4, "random", 0)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    assert torch.equal(image_labels(range(60, 70), 4, "random", 0), drawn[60:70])
    assert image_labels(range(3), 0, "balanced", 0) is None


def test_other_settings_are_refused(draw, monkeypatch):
    draw("run", solver="ddim", num_images=2)
    with pytest.raises(ValueError, match="holds samples with other settings: seed is 5 there, 6 here"):
        draw("run", solver="ddim", num_images=2, seed=6)
    with pytest.raises(ValueError, match="holds samples with other settings: solver is ddim there, ddpm here"):
        draw("run", num_images=2)
    with pytest.raises(ValueError, match="labels must be balanced or random, got 'all'"):
        draw("run", labels="all")
    monkeypatch.setattr("l2c.drawing.run.code_version", lambda: "0.1.0, code of another commit")
    said = r"made_by is 0\.1\.0, code \w{12} there, 0\.1\.0, code of another commit here; continue with the same"
    with pytest.raises(ValueError, match=said):
        draw("run", solver="ddim", num_images=2)


def test_a_full_disk_is_one_sentence_and_leaves_whole_shards(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    for write in (
        lambda: Samples((1, 2, 2), 1, 1, False, {}).write_shard(tmp_path, 0, torch.zeros(1, 1, 2, 2), None),
        lambda: Manifest("vae", 1.0, 16, (4, 2, 2), 1, 1, 1, False).write_shard(
            tmp_path, 0, *torch.zeros(2, 1, 4, 2, 2), torch.zeros(1), []
        ),
    ):
        with pytest.raises(OSError, match="No space left on device; free some space on its disk and run again"):
            write()
    assert not list(tmp_path.iterdir())


def test_pixels_follow_dits_rule():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5)
    assert to_pixels(values).flatten().tolist() == [0, 0, 128, 255, 255]


def test_noise_of_an_image_does_not_depend_on_its_batch(make_dit):
    dit = make_dit()
    sampler = Sampler(dit, solver="ddim", num_evaluations=3, eta=1.0)
    whole = sampler.sample([0, 1, 2], seed=3, first_image=10)
    last = sampler.sample([2], noise=seeded_noise(dit.input_shape, 3, 1, first=12), seed=3, first_image=12)
    torch.testing.assert_close(last, whole[2:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sampler.sample([2], seed=3, first_image=11), last, atol=1e-2)


def test_two_processes_draw_what_one_draws(call, call_process, tmp_path):
    def check(result, name):
        assert result.returncode == 0, result.stderr[-3000:]
        assert "drew 12 of 12 images" in result.stdout
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    settings = ["graph=dit_digits_ddim20", "num_images=12", "batch_size=2", "shard_size=4", "trainer.accelerator=cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    two = call_process(*launcher, "scripts/sample_many.py", *settings, f"hydra.run.dir={tmp_path / 'two'}")
    one = call("scripts/sample_many.py", *settings, f"hydra.run.dir={tmp_path / 'one'}")
    assert check(two, "two") == check(one, "one")
