"""Errors, costs, latencies and pictures of sampling with a cache graph."""

from l2c.io.torchvision_stand_in import make_importable

make_importable()  # Lightning and torchmetrics import torchvision
