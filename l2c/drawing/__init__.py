"""Many images drawn into a folder, by any number of processes."""

from l2c.io.torchvision_stand_in import make_importable

make_importable()  # Lightning and torchmetrics import torchvision
