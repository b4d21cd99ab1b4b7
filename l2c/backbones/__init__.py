"""Frozen noise-prediction networks with one seam for caching."""

from l2c.io.torchvision_stand_in import make_importable

make_importable()  # timm imports torchvision, also where a pickled backbone is loaded
