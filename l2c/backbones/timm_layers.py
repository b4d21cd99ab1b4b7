"""The modules that backbones take from timm."""

import importlib
from types import ModuleType

from l2c.io.torchvision_stand_in import make_importable


def timm_layers() -> ModuleType:
    """Return `timm.layers`, imported when the first backbone is built: timm brings torchvision and all its models."""
    make_importable()
    return importlib.import_module("timm.layers")
