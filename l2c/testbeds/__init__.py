"""Small models that train on a CPU: their data, training and classifiers."""

from l2c.io.torchvision_stand_in import make_importable

make_importable()  # Lightning and torchmetrics import torchvision
