"""Draw images with a backbone, with or without a cache graph.

python scripts/sample.py graph=runs/demo/cache_graph.json
"""

from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file

from l2c import cli
from l2c.atomic import replacing
from l2c.backbones.zoo import load_backbone, model_preset
from l2c.evaluation.figures import sample_grid, save_figure
from l2c.graph import CacheGraph
from l2c.sampling.sampler import Sampler, seeded_noise


@cli.entry("sample")
def main(cfg: DictConfig) -> None:
    """Load, sample, write."""
    graph = CacheGraph.load(cfg.graph) if cfg.graph is not None else None
    preset = cfg.get("model") or model_preset(graph.model if graph is not None else "dit_digits")
    backbone = load_backbone(preset, checkpoint=cfg.checkpoint)
    graph_scale = graph.cfg_scale if graph is not None else None
    sampler = Sampler(
        backbone,
        graph=graph,
        solver=cfg.solver or (None if graph is not None else preset.sampling.solver),
        num_evaluations=cfg.num_evaluations or (None if graph is not None else preset.sampling.num_evaluations),
        cfg_scale=next((s for s in (cfg.cfg_scale, graph_scale) if s is not None), preset.sampling.cfg_scale),
    )
    labels = None
    if backbone.num_labels:
        wanted = list(cfg.labels) if cfg.labels else [i % backbone.num_labels for i in range(cfg.num_images)]
        labels = torch.tensor(wanted)
    noise = seeded_noise(backbone.input_shape, cfg.seed, cfg.num_images if labels is None else len(labels))
    images = sampler.sample(labels, noise=noise, seed=cfg.seed, progress=True).cpu()
    folder = Path(cfg.output) if cfg.output is not None else cli.run_folder()
    tensors = {"images": images} if labels is None else {"images": images, "labels": labels}
    with replacing(folder / "samples.safetensors") as temporary:
        save_file(tensors, temporary)
    name = "uncached" if graph is None else "cached"
    shown = None if labels is None else labels.tolist()
    save_figure(sample_grid({name: images[:16]}, shown[:16] if shown else None), folder / "samples.png")
    print(f"wrote {folder / 'samples.safetensors'} {tuple(images.shape)} and {folder / 'samples.png'}")


if __name__ == "__main__":
    main()
