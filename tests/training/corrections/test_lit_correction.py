"""Training of slopes, scales and shifts: the walk is the sampler's, the error falls, bad settings are refused."""

import pytest
import torch

from l2c.sampling.correction import save_correction
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.training.corrections.lit_correction import LitCorrection

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
    module = LitCorrection(uncached, graph, scale_shift=scale_shift)
    with torch.no_grad():
        module.slopes += 0.3
        module.maps += 0.1 * torch.randn(module.maps.shape, generator=torch.Generator().manual_seed(0))
        noise = seeded_noise(backbone.input_shape, 0, 4)
        walked, _ = module.walk(noise, LABELS)
    expected = images_of(module, backbone, noise, tmp_path)
    torch.testing.assert_close(walked, expected, rtol=1e-3, atol=1e-3)


def test_before_training_nothing_is_changed(uncached, graph, backbone, tmp_path):
    module = LitCorrection(uncached, graph)
    noise = seeded_noise(backbone.input_shape, 0, 4)
    plain = Sampler(backbone, graph=graph).sample(LABELS, noise=noise)
    torch.testing.assert_close(images_of(module, backbone, noise, tmp_path), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["image", "output"])
def test_a_few_steps_lower_the_loss_and_leave_the_backbone_alone(make_dit, make_graph, loss):
    backbone = make_dit(in_channels=1)
    sampler = Sampler(backbone, solver="ddim", num_evaluations=4)
    graph = make_graph(backbone, num_evaluations=4, rows=[[True] * 4, [False] * 4, [True, False] * 2, [False] * 4])
    module = LitCorrection(sampler, graph, loss=loss, max_steps=12, scale_shift_rate=0.02)
    module.log = lambda *_, **__: None
    optimizer = module.configure_optimizers()["optimizer"]
    batch = seeded_noise(backbone.input_shape, 1, 4), LABELS
    losses = []
    for _ in range(12):
        value = module.training_step(batch, 0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_what_cannot_be_trained_is_refused(uncached, graph):
    with pytest.raises(ValueError, match="loss must be one of image, output, got 'x'"):
        LitCorrection(uncached, graph, loss="x")
    with pytest.raises(ValueError, match="leave nothing to train"):
        LitCorrection(uncached, graph, slopes=False, scale_shift=False)
    full = graph.replace(rows=((True,) * graph.num_layers,) * 6, routed=None)
    with pytest.raises(ValueError, match="reuses nothing"):
        LitCorrection(uncached, full)
