"""Pictures of the emoji's shape that need no download."""

import pytest
import torch

from l2c.testbeds.emoji import CLASSES, Emoji


@pytest.fixture(scope="session")
def pictures():
    """Return 12 + 3 c pictures of class c: a square of a colour that is the class's, at some place."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((12 + 3 * c,), c) for c in range(len(CLASSES))])
    colours = torch.randint(0, 200, (len(CLASSES), 3, 1, 1), generator=generator, dtype=torch.uint8)
    images = torch.full((len(labels), 3, 32, 32), 255, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = torch.randint(2, 14, (2,), generator=generator).tolist()
        image[:, top : top + 16, left : left + 16] = colours[label]
        image[:, top, left] = 0  # so that left and right differ
    families = torch.arange(len(labels)) // 3  # three variants each
    return Emoji(images, labels, families, torch.arange(len(labels)) % 3 > 0)
