"""Training of routers (and of the small bundled backbones) with Lightning."""

from l2c.io.torchvision_stand_in import make_importable

make_importable()  # Lightning and torchmetrics import torchvision
