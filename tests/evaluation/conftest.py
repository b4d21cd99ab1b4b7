"""Networks that methods of others run on, beside the packages that these are from."""

import pytest
import torch

from l2c.backbones.dit import sincos_position_embedding
from l2c.calibration.cost import count_macs
from l2c.sampling.sampler import Sampler, seeded_noise


@pytest.fixture
def make_uncached(make_dit):
    """Return the function that makes the sampler of a DiT which diffusers can hold too."""

    def make(depth, num_evaluations):
        dit = make_dit(depth=depth)
        dit.pos_embed.copy_(sincos_position_embedding(32, 4))  # fixed by the architecture
        return Sampler(dit, solver="ddim", num_evaluations=num_evaluations)

    return make


@pytest.fixture
def start(uncached):
    """Return the label and the noise of one image."""
    return torch.tensor([3]), seeded_noise(uncached.backbone.input_shape, 0, 1)


@pytest.fixture
def spared(uncached):
    """Return the function that gives the evaluations' worth of MACs of some layers at `count` evaluations."""
    cost = count_macs(uncached.backbone)
    return lambda count, layers: count * sum(cost.layers[layers]) / cost.evaluation
