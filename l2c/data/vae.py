"""The autoencoder between images and latents."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from l2c.io.lazy import needed
from l2c.io.names import folder_or_hub
from l2c.io.seeds import draw_normal
from l2c.io.tensors import digest_of_tensors

SCALE_TOLERANCE = 1e-6  # scales that differ by more belong to different autoencoders


class Vae(Protocol):
    """Something that encodes and decodes images.

    Attributes:
        scale: latents are multiplied by it before the backbone sees them.

    """

    scale: float

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (N, C, H / 8, W / 8) of images (N, 3, H, W) in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, 8 H, 8 W), about in [-1, 1], of scaled latents (N, C, H, W)."""


class DiffusersVae:
    """diffusers' AutoencoderKL.

    Args:
        network: the autoencoder.

    """

    def __init__(self, network: Any) -> None:
        self.network = network.eval().requires_grad_(False)
        self.scale = float(network.config.scaling_factor)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of images; the network follows them to their device."""
        posterior = self.network.to(images.device).encode(images).latent_dist
        return posterior.mean, posterior.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images of latents as the backbone gives them; the network follows them to their device."""
        return self.network.to(latents.device).decode(latents / self.scale).sample


def vae_digest(vae: Vae) -> str:
    """Return a digest of an autoencoder: of its class, and of the weights of the modules that it is or holds."""
    held = {"": vae, **vars(vae)}
    weights = {
        f"{name}.{weight}": value
        for name, module in held.items()
        if isinstance(module, nn.Module)
        for weight, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }
    return digest_of_tensors([(type(vae).__qualname__, torch.tensor(vae.scale)), *sorted(weights.items())])


def load_vae(name: str) -> Vae:
    """Load an AutoencoderKL by its name on the Hub or from a local folder.

    Raises:
        ValueError: if diffusers is not installed.
        OSError: if there is no such autoencoder, or it cannot be fetched.

    """
    with needed("diffusers", "encoding images needs", "imagenet"):
        from diffusers import AutoencoderKL
    with folder_or_hub("autoencoder", name):
        return DiffusersVae(AutoencoderKL.from_pretrained(name))


def draw_latents(mean: Tensor, std: Tensor, scale: float, draws: list[int], seed: int) -> Tensor:
    """Return samples (N, C, H, W) of posteriors, scaled; sample i depends on the seed and `draws[i]` alone."""
    noise = [draw_normal(tuple(mean.shape[1:]), "sample of a posterior", seed, draw) for draw in draws]
    return scale * (mean.float() + std.float() * torch.stack(noise).to(mean.device))
