"""Learned layer caching of diffusion transformers: the public names."""

from l2c.io import torchvision_stand_in

torchvision_stand_in.make_importable()  # before timm and Lightning, which import torchvision

from l2c.backbones.dit import DiT  # noqa: E402
from l2c.backbones.presets import load_backbone  # noqa: E402
from l2c.backbones.uvit import UViT  # noqa: E402
from l2c.backbones.wrap import wrap  # noqa: E402
from l2c.graph.cache_graph import CacheGraph  # noqa: E402
from l2c.integrations.l2c_routers import import_l2c_router  # noqa: E402
from l2c.sampling.sampler import Sampler  # noqa: E402

__all__ = ["CacheGraph", "DiT", "Sampler", "UViT", "import_l2c_router", "load_backbone", "wrap"]
