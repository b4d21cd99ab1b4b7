"""Weights that were made under torch.inference_mode: sampled, digested, measured forward; else one sentence."""

import pytest
import torch

import l2c
from l2c.backbones.backbone import fingerprint
from l2c.calibration import measuring
from l2c.calibration.distillation import Distillation
from l2c.sampling.solver_settings import SolverSettings
from l2c.training.routers.run import train_routers
from l2c.training.routers.settings import RouterTraining

SENTENCE = r"weights of DiT were made under torch\.inference_mode.*; load the model outside of it .*, or measure by"
SHORT = {"num_trajectories": 1, "batch_size": 1, "true_errors": 0}


@pytest.fixture
def net(make_dit):
    with torch.inference_mode():
        made = make_dit()
    assert next(made.parameters()).is_inference()
    return made


def test_what_needs_no_gradient_works(net, make_dit, make_graph):
    plain, labels, noise = make_dit(), torch.tensor([1]), torch.randn(1, *net.input_shape)
    graph = make_graph(plain, fingerprint=fingerprint(plain))
    images = l2c.Sampler(net, graph=graph).sample(labels, noise=noise)
    assert torch.equal(images, l2c.Sampler(plain, graph=graph).sample(labels, noise=noise))
    sampler = l2c.Sampler(net, solver="ddim", num_evaluations=4)
    forward = {"num_probes": 1, "method": "forward"}
    for how in ({"what": ["changes"]}, {"what": ["responses"], "responses": forward}):
        assert l2c.Calibration.measure(sampler, **SHORT, **how).binding.fingerprint == fingerprint(plain)


def test_what_needs_gradients_is_refused_before_work(net, make_graph, tmp_path, monkeypatch):
    sampler = l2c.Sampler(net, solver="ddim", num_evaluations=6)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_changes", None)
        with pytest.raises(ValueError, match=SENTENCE):
            l2c.Calibration.measure(sampler, what=["changes", "responses"], responses={"num_probes": 1}, **SHORT)
    with pytest.raises(ValueError, match=SENTENCE):
        Distillation(sampler, make_graph(net))
    settings = RouterTraining(solver=SolverSettings(name="ddim", num_evaluations=6))
    with pytest.raises(ValueError, match=SENTENCE):
        train_routers(net, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_are_looked_at_before_anything_is_counted(make_dit, monkeypatch):
    sampler = l2c.Sampler(make_dit(), solver="ddim", num_evaluations=4)
    monkeypatch.setattr(measuring, "count_macs", None)
    for wrong in ({"what": ["zzz"]}, {"batch_size": 0}, {"responses": {"num_probes": -1}}, {"seed": -1}):
        with pytest.raises(ValueError, match=r"must be|unknown"):
            l2c.Calibration.measure(sampler, true_errors=0, **wrong)
    noisy = l2c.Sampler(make_dit(), solver="ddim", num_evaluations=4, eta=1.0)
    with pytest.raises(ValueError, match="one trajectory per noise"):
        l2c.Calibration.measure(noisy, what=["changes", "responses"], **SHORT)
