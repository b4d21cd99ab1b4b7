"""Learned layer caching of diffusion transformers: the public names."""

from l2c import _torchvision

_torchvision.make_importable()  # before timm and Lightning, which import torchvision
