"""One run that draws many images into a folder, alone or with other processes, and goes on where it was killed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from l2c.backbones.backbone import known_by
from l2c.data.processes import started_by_torchrun
from l2c.data.vae import Vae, vae_digest
from l2c.drawing.image_archive import write_archive
from l2c.drawing.image_shards import ImageShards, Samples, Setting
from l2c.drawing.lit_drawing import LitSampler, ShardsToDraw
from l2c.drawing.settings import DrawingSettings
from l2c.graph.given import table, takes, text
from l2c.io.bundled import at_home
from l2c.io.memory import halved, memory_explained, remedies
from l2c.io.version import code_version
from l2c.sampling.correction import plan_digest
from l2c.sampling.sampler import Sampler
from l2c.training.trainer import make_bare_trainer
from l2c.training.watch import watched


@dataclass(frozen=True)
class Drawn:
    """The result of a run.

    Attributes:
        folder: folder of the shards.
        num_images: images drawn by all processes of this run; fewer than the folder's where it went on.
        seconds: wall-clock that drawing them took, model loading not included.
        first_process: whether this is the first process, which works on with the images.

    """

    folder: Path
    num_images: int
    seconds: float
    first_process: bool

    @property
    def images_per_second(self) -> float:
        """Images of all processes together per second."""
        return self.num_images / self.seconds

    def write_archive(self) -> Path:
        """Write all images, and labels where there are any, as `samples.npz` for ADM's evaluator."""
        shards = ImageShards(self.folder)
        path = self.folder / "samples.npz"
        return write_archive(path, shards.batches(512), len(shards), shards.shape, shards.labels())


@takes(sampler=Sampler, vae_name=text, trainer=table, settings=table)
def sample_images(
    sampler: Sampler,
    folder: str | Path,
    *,
    num_images: int,
    seed: int = 0,
    labels: str = "balanced",
    batch_size: int = 32,
    shard_size: int = 512,
    vae: Vae | None = None,
    vae_name: str | None = None,
    trainer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Drawn:
    """Draw images 0..num_images-1 of a seed into shards.

    Args:
        sampler: draws the images.
        folder: folder of shards and manifest; with shards of the same settings it is completed.
        num_images: number of images.
        seed: seed of noise and labels; image i is the same however many processes share the work.
        labels: `balanced` goes round all labels, `random` draws each.
        batch_size: images at a time, of one process.
        shard_size: images per file; what a kill costs at most.
        vae: decodes latents.
        vae_name: name of the VAE for the manifest.
        trainer: settings of Lightning's Trainer: accelerator, devices, num_nodes.
        settings: `compile` and `capture`, true or false: whether blocks are compiled, and trajectories replayed as
            CUDA graphs, for batches of `batch_size`. A last batch of a shard is filled up to it.

    Raises:
        ValueError: if the folder holds other samples, a setting is out of range, or images are not finite.
        OSError: if the folder cannot be written, or the disk is full; whole shards stay.
        MemoryError: if memory runs out; the message says what lowers its use.
        SystemExit: if Ctrl-C, SIGTERM or SIGHUP comes; the code is 130, 143 or 129, and whole shards stay.

    """
    asked = DrawingSettings(
        num_images=num_images, seed=seed, labels=labels, batch_size=batch_size, shard_size=shard_size
    )
    runner = make_bare_trainer(
        max_steps=1,  # of training, which there is none of
        use_distributed_sampler=False,  # shards are split here
        **_processes(trainer or {}),
    )
    place = at_home(folder)
    samples = _samples(sampler, asked, runner.strategy.root_device, vae, vae_name)
    samples.claim(place)
    settings = settings or {}
    module = LitSampler(
        sampler,
        samples,
        place,
        seed=seed,
        labels=labels,
        vae=vae,
        fixed_batch=batch_size if any(settings.values()) else None,
        settings=settings,
    )
    return _drawn(runner, module, ShardsToDraw(samples, place, batch_size), place)


def _drawn(runner: pl.Trainer, module: LitSampler, shards: ShardsToDraw, place: Path) -> Drawn:
    """Draw the shards that are missing, wait for the other processes."""
    start = time.perf_counter()
    with memory_explained(lambda: _memory_sentence(shards.batch_size)), watched(runner):
        runner.predict(module, shards, return_predictions=False)
        drawn = torch.tensor(float(module.num_drawn), device=runner.strategy.root_device)
        total = runner.strategy.reduce(drawn, reduce_op="sum")  # also waits for all
    return Drawn(place, int(total), time.perf_counter() - start, runner.is_global_zero)


def _memory_sentence(batch_size: int) -> str:
    """Return a sentence on the settings that lower the memory of drawing."""
    return (
        f"out of memory in drawing with batch_size={batch_size}; "
        f"{remedies(halved('batch_size', batch_size), 'precision=bf16', 'cache_dtype=bf16', 'cache_device=cpu')}"
    )


def _samples(
    sampler: Sampler, asked: DrawingSettings, device: torch.device, vae: Vae | None, vae_name: str | None
) -> Samples:
    """Return the manifest that the folder gets."""
    shape = sampler.backbone.input_shape
    return Samples(
        shape=shape if vae is None else _decoded(vae, shape),
        num_images=asked.num_images,
        shard_size=asked.shard_size,
        labelled=sampler.backbone.num_labels > 0,
        settings=_settings(
            sampler,
            device,
            seed=asked.seed,
            labels=asked.labels,
            vae=vae_name,
            vae_digest=None if vae is None else vae_digest(vae),
        ),
    )


def _processes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer's settings; `devices: auto` means the processes that torchrun has started, if any."""
    launched = started_by_torchrun()
    if settings.get("devices") != "auto" or launched is None:
        return dict(settings)
    world, local = launched
    return {**settings, "devices": local, "num_nodes": world // local}


def _decoded(vae: Vae, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images of latents (C, H, W), measured on small latents."""
    side = 8
    channels, enlarged, _ = vae.decode(torch.zeros(1, shape[0], side, side)).shape[1:]
    return channels, shape[1] * enlarged // side, shape[2] * enlarged // side


def _settings(sampler: Sampler, device: torch.device, **others: Setting) -> dict[str, Setting]:
    """Return the settings that determine the images drawn on a device."""
    cache_dtype, graph = sampler.cache_dtype, sampler.graph
    return {
        "made_by": code_version(),
        "model": sampler.backbone.conventions.name,
        **{"pipeline": None, **known_by(sampler.backbone)},
        "dtype": str(sampler.backbone.dtype).removeprefix("torch."),
        "solver": sampler.solver.name,
        "num_evaluations": sampler.solver.num_evaluations,
        **{"eta": None, **sampler.solver.options},
        "cfg_scale": sampler.guidance.scale,
        "products": sampler.matmul_on(device),
        "cache_dtype": None if cache_dtype is None else str(cache_dtype).removeprefix("torch."),
        "graph": None if graph is None else plan_digest(graph),
        "correction": graph.correction.fingerprint if graph is not None and graph.correction else None,
        **others,
    }
