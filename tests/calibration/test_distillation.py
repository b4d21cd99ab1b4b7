"""Training of slopes, scales and shifts: the walk is the sampler's, the error falls, bad settings are refused."""

import math

import pytest
import torch

from l2c.calibration.distillation import Distillation, distil
from l2c.sampling.correction import save_correction
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.unrolled import unroll

LABELS = torch.arange(4)


@pytest.fixture
def uncached(backbone):
    solver = "ddim" if backbone.conventions.guidance == "dit" else "dpm_solver_2s"
    return Sampler(backbone, solver=solver, num_evaluations=6, cfg_scale=1.5)


@pytest.fixture
def graph(backbone, make_graph):
    return make_graph(backbone, cfg_scale=1.5)


def images_of(module, backbone, noise, folder):
    graph, scale, shift = module.corrected()
    if scale is not None:
        graph = save_correction(folder / "c.safetensors", graph, scale, shift)
    return Sampler(backbone, graph=graph).sample(LABELS, noise=noise)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_walk_is_that_of_the_exported_graph(uncached, graph, backbone, tmp_path, scale_shift):
    module = Distillation(uncached, graph, scale_shift=scale_shift)
    with torch.no_grad():
        module.slopes += 0.3
        if scale_shift:
            module.maps += 0.1 * torch.randn(module.maps.shape, generator=torch.Generator().manual_seed(0))
        noise = seeded_noise(backbone.input_shape, 0, 4)
        walked, _ = module.walk(noise, LABELS)
    expected = images_of(module, backbone, noise, tmp_path)
    torch.testing.assert_close(walked, expected, rtol=1e-3, atol=1e-3)


def test_before_training_nothing_is_changed(uncached, graph, backbone, tmp_path):
    module = Distillation(uncached, graph)
    noise = seeded_noise(backbone.input_shape, 0, 4)
    plain = Sampler(backbone, graph=graph).sample(LABELS, noise=noise)
    torch.testing.assert_close(images_of(module, backbone, noise, tmp_path), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["image", "output"])
def test_a_few_steps_lower_the_loss_and_leave_the_backbone_alone(make_dit, make_graph, loss):
    backbone = make_dit(in_channels=1)
    sampler = Sampler(backbone, solver="ddim", num_evaluations=4)
    graph = make_graph(backbone, num_evaluations=4, rows=[[True] * 4, [False] * 4, [True, False] * 2, [False] * 4])
    module = Distillation(sampler, graph, loss=loss, scale_shift_rate=0.02)
    batch = seeded_noise(backbone.input_shape, 1, 4), LABELS
    with torch.no_grad():
        before, error = module.loss(*batch)
    assert (error is None) == (loss == "output")
    distil(module, [batch] * 12, 24)
    with torch.no_grad():
        after, _ = module.loss(*batch)
    assert float(after) < 0.9 * float(before)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_slopes_are_trained_by_adam_on_the_error_of_the_image(uncached, graph, backbone):
    """Bit for bit what the steps written out plainly give, towards the images of another number of evaluations."""
    teacher = Sampler(backbone, solver=graph.solver, num_evaluations=8, cfg_scale=1.5)
    module = Distillation(uncached, graph, teacher=teacher, scale_shift=False, slope_rate=0.05)
    batches = [(seeded_noise(backbone.input_shape, 1, 2, first=2 * i), LABELS[:2]) for i in range(3)]
    slopes = module.slopes.detach().clone().requires_grad_(True)
    distil(module, batches, 3)
    adam = torch.optim.Adam([slopes], lr=0.05, betas=(0.9, 0.99))
    for step, (noise, y) in enumerate(batches):
        adam.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 3))
        images, _ = unroll(uncached, graph, noise, y, slopes)
        square = (images - teacher.sample(y, noise=noise)).square().flatten(1).mean(dim=1)
        adam.zero_grad()
        square.clamp_min(1e-12).sqrt().mean().backward()
        adam.step()
    assert torch.equal(module.slopes, slopes)
    trained, scale, shift = module.corrected()
    assert scale is shift is None
    assert [trained.entry_slopes[e][i] for e, i in module.entries] == [round(s, 6) for s in slopes.tolist()]


def test_what_cannot_be_trained_is_refused(uncached, graph):
    with pytest.raises(ValueError, match="loss must be one of image, output, got 'x'"):
        Distillation(uncached, graph, loss="x")
    with pytest.raises(ValueError, match="leave nothing to train"):
        Distillation(uncached, graph, slopes=False, scale_shift=False)
    full = graph.replace(rows=((True,) * graph.num_layers,) * 6, routed=None)
    early = graph.replace(
        rows=tuple((e != 1,) * graph.num_layers for e in range(graph.num_evaluations)),
        routed=None,
        reuse=(),
        slopes=(),
        weights=(),
    )
    with pytest.raises(ValueError, match="no slopes to train; take a graph that reuses later"):
        Distillation(uncached, early, scale_shift=False)
    with pytest.raises(ValueError, match="reuses nothing"):
        Distillation(uncached, full)
