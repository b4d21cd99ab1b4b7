"""Draw images with a backbone, with or without a cache graph.

python scripts/sample.py graph=runs/demo/cache_graph.json
"""

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file

from l2c import cli
from l2c.atomic import replacing
from l2c.backbones.zoo import load_backbone, model_preset
from l2c.evaluation.figures import sample_grid, save_figure
from l2c.graph import CacheGraph
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.settings import launch, ways


def _wanted(labels: object) -> list[int]:
    """Return the labels that a user names: one, a list, or none."""
    wanted = [] if labels is None else [labels] if isinstance(labels, int) else list(labels)  # type: ignore[call-overload]
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in wanted):
        raise ValueError(f"labels must be whole numbers, got {wanted}; say labels=[3,7]")
    return wanted


@cli.entry("sample")
def main(cfg: DictConfig) -> None:
    """Load, sample, write."""
    graph = CacheGraph.load(cfg.graph) if cfg.graph is not None else None
    preset = cfg.get("model") or model_preset(graph.model if graph is not None else "dit_digits")
    backbone = load_backbone(preset, checkpoint=cfg.checkpoint).to(cli.device(cfg.device))
    graph_scale = graph.cfg_scale if graph is not None else None
    solver = cfg.get("solver")
    published = None if graph is not None else preset.sampling.solver
    sampler = Sampler(
        backbone,
        graph=graph,
        solver=published if solver is None else solver.name,
        eta=None if solver is None else solver.options.get("eta"),
        num_evaluations=cfg.num_evaluations or (None if graph is not None else preset.sampling.num_evaluations),
        cfg_scale=next((s for s in (cfg.cfg_scale, graph_scale) if s is not None), preset.sampling.cfg_scale),
        **ways(cfg),
    )
    cli.check_positive(cfg, "num_images")
    labels = None
    if backbone.num_labels:
        labels = torch.tensor(_wanted(cfg.labels) or [i % backbone.num_labels for i in range(cfg.num_images)])
    noise = seeded_noise(backbone.input_shape, cfg.seed, cfg.num_images if labels is None else len(labels))
    launch(sampler, len(noise), cfg)
    images = sampler.sample(labels, noise=noise, seed=cfg.seed, progress=True).cpu()
    folder = cli.run_folder()
    tensors = {"images": images} if labels is None else {"images": images, "labels": labels}
    with replacing(folder / "samples.safetensors") as temporary:
        save_file(tensors, temporary)
    name = "uncached" if graph is None else "cached"
    shown = None if labels is None else labels.tolist()
    save_figure(sample_grid({name: images[:16]}, shown[:16] if shown else None), folder / "samples.png")
    print(f"wrote {folder / 'samples.safetensors'} {tuple(images.shape)} and {folder / 'samples.png'}")


if __name__ == "__main__":
    main()
