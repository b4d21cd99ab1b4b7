"""Many images of a configuration's sampler, which `sample_many` and `evaluate` draw."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from l2c.commands.frame.sampler import make_sampler
from l2c.data.vae import load_vae
from l2c.drawing.run import Drawn, sample_images

LATENT_CHANNELS = 4  # those of the autoencoder; backbones on pixels have 1 or 3


def draw_by(cfg: DictConfig, folder: Path) -> Drawn:
    """Draw the images that a config of `sample_many` or `evaluate` asks for; latents are decoded by its VAE."""
    sampler = make_sampler(cfg)
    latent = sampler.backbone.input_shape[0] == LATENT_CHANNELS
    return sample_images(
        sampler,
        folder,
        num_images=cfg.num_images,
        seed=cfg.seed,
        labels=cfg.labels,
        batch_size=cfg.batch_size,
        shard_size=cfg.shard_size,
        vae=load_vae(cfg.vae) if latent else None,
        vae_name=cfg.vae if latent else None,
        trainer={key: cfg.trainer[key] for key in ("accelerator", "devices", "num_nodes")},
        settings={name: cfg.get(name, False) for name in ("compile", "capture")},
    )
