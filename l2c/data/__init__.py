"""Training data as Lightning data modules; batches depend on seed and step only."""

from l2c.io.torchvision_stand_in import make_importable

make_importable()  # Lightning and torchmetrics import torchvision
