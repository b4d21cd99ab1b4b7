"""Draw images with a backbone, with or without a cache graph.

l2c sample graph=runs/demo/cache_graph.json
"""

import torch
from omegaconf import DictConfig
from PIL import Image

from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import BACKBONE_SETTINGS, is_pipeline
from l2c.commands.frame.sampler import make_sampler
from l2c.commands.frame.table import command_line
from l2c.graph.binding import scale_in_use
from l2c.graph.cache_graph import CacheGraph
from l2c.io.tensors import check_finite, write_tensors
from l2c.report.figures import save_figure, save_pixels
from l2c.report.sample_grid import sample_grid
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.sampler import seeded_noise
from l2c.sampling.settings import prepare

OUR_SAMPLER = (
    "checkpoint",
    "labels",
    "precision",
    "matmul",
    "compile",
    "capture",
    "cache_dtype",
    "cache_device",
    "device",
)


def _wanted(labels: object) -> list[int]:
    """Return the labels that a user names: one, a list, or none."""
    wanted = [] if labels is None else [labels] if isinstance(labels, int) else list(labels)  # type: ignore[call-overload]
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in wanted):
        raise ValueError(f"labels must be whole numbers, got {wanted}; say labels=[3,7]")
    return wanted


def draw_by_pipeline(cfg: DictConfig) -> None:
    """Call a pipeline as its users do, with the graph applied; write what it returns."""
    from l2c.commands.frame.saved_pipeline import read_pipeline
    from l2c.drawing.image_shards import to_pixels  # its room imports Lightning
    from l2c.integrations.diffusers import apply
    from l2c.integrations.diffusers.images import pipeline_images
    from l2c.integrations.diffusers.options import OF_COMMANDS, check_options
    from l2c.integrations.diffusers.prompts import read_prompts

    ours = [name for name in OUR_SAMPLER if cfg[name] not in (None, False, "default")]
    if ours:
        raise ValueError(
            f"{ours[0]} is a setting of our own sampler, which a pipeline does not use; leave it out (labels "
            "are lines of prompts=FILE, the device is model.device)"
        )
    graph = CacheGraph.load(cfg.graph) if cfg.graph is not None else None
    pipe = read_pipeline(cfg.model)
    check_options(pipe, cfg.model.options, OF_COMMANDS)
    if graph is not None:
        apply(pipe, graph)
    prompts = read_prompts(cfg.model.prompts, pipe)
    images = pipeline_images(
        pipe,
        [prompts[i % len(prompts)] for i in range(cfg.num_images)],
        seed=cfg.seed,
        num_evaluations=cfg.num_evaluations or (cfg.solver if graph is None else graph).num_evaluations,
        guidance_scale=scale_in_use(cfg.cfg_scale, None if graph is None else graph.cfg_scale, cfg.solver.cfg_scale),
        options=cfg.model.options,
    )
    check_finite("images", images, mend="check guidance scale and graph, or take model.dtype=float32")
    folder = cli.run_folder()
    write_tensors(folder / "samples.safetensors", {"images": images})
    for i, pixels in enumerate(to_pixels(images).movedim(1, -1)):
        save_pixels(Image.fromarray(pixels.numpy()), folder / f"image-{i:04d}.png")
    print(f"wrote {folder / 'samples.safetensors'} {tuple(images.shape)} and {folder}/image-*.png")
    print(f"next: {_next(cfg)}")


def _next(cfg: DictConfig) -> str:
    """Return the command that compares the graph's images with the uncached ones; without a graph, one towards it."""
    same = cli.repeated(*BACKBONE_SETTINGS)
    if cfg.graph is None:
        return command_line("calibrate", *same, "measure=[responses]")
    return command_line("evaluate", *same, graph=cfg.graph, checkpoint=cfg.checkpoint)


@cli.entry("sample")
def main(cfg: DictConfig) -> None:
    """Load, sample, write."""
    if is_pipeline(cfg.get("model")):
        draw_by_pipeline(cfg)
        return
    sampler = make_sampler(cfg, device=cli.device(cfg.device))
    backbone = sampler.backbone
    labels = labels_in_turn(backbone.num_labels, cfg.num_images)
    if labels is not None and (wanted := _wanted(cfg.labels)):
        labels = torch.tensor(wanted)
    noise = seeded_noise(backbone.input_shape, cfg.seed, cfg.num_images if labels is None else len(labels))
    prepare(sampler, len(noise), cfg)
    images = sampler.sample(labels, noise=noise, seed=cfg.seed, progress=True).cpu()
    folder = cli.run_folder()
    tensors = {"images": images} if labels is None else {"images": images, "labels": labels}
    write_tensors(folder / "samples.safetensors", tensors)
    name = "uncached" if sampler.graph is None else "cached"
    shown = None if labels is None else labels.tolist()
    save_figure(sample_grid({name: images[:16]}, shown[:16] if shown else None), folder / "samples.png")
    print(f"wrote {folder / 'samples.safetensors'} {tuple(images.shape)} and {folder / 'samples.png'}")
    print(f"next: {_next(cfg)}")


if __name__ == "__main__":
    main()
