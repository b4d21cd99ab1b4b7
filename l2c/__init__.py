"""Learned layer caching of diffusion transformers: the public names, each loaded when it is first used."""

from typing import TYPE_CHECKING

from l2c.io.lazy import lazy_names
from l2c.io.version import __version__

if TYPE_CHECKING:
    from l2c.backbones.dit import DiT
    from l2c.backbones.presets import load_backbone
    from l2c.backbones.uvit import UViT
    from l2c.backbones.whole_output import WholeOutput
    from l2c.backbones.wrap import wrap
    from l2c.graph.cache_graph import CacheGraph
    from l2c.graph.collection import CacheGraphs
    from l2c.integrations.diffusers import applied, apply, remove
    from l2c.integrations.l2c_routers import import_l2c_router
    from l2c.pipelines.acceleration import accelerate
    from l2c.policies.calibration import Calibration
    from l2c.policies.ladder import Ladder
    from l2c.sampling.sampler import Sampler

__all__ = [
    "CacheGraph",
    "CacheGraphs",
    "Calibration",
    "DiT",
    "Ladder",
    "Sampler",
    "UViT",
    "WholeOutput",
    "__version__",
    "accelerate",
    "applied",
    "apply",
    "import_l2c_router",
    "load_backbone",
    "remove",
    "wrap",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CacheGraph": "l2c.graph.cache_graph",
        "CacheGraphs": "l2c.graph.collection",
        "Calibration": "l2c.policies.calibration",
        "DiT": "l2c.backbones.dit",
        "Ladder": "l2c.policies.ladder",
        "Sampler": "l2c.sampling.sampler",
        "UViT": "l2c.backbones.uvit",
        "WholeOutput": "l2c.backbones.whole_output",
        "accelerate": "l2c.pipelines.acceleration",
        "applied": "l2c.integrations.diffusers",
        "apply": "l2c.integrations.diffusers",
        "import_l2c_router": "l2c.integrations.l2c_routers",
        "load_backbone": "l2c.backbones.presets",
        "remove": "l2c.integrations.diffusers",
        "wrap": "l2c.backbones.wrap",
    },
)
