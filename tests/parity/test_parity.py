"""Equality with an independent implementation of the published schemes (tiny, fp32, CPU).

The data lie beside the checkout, see `reference` in conftest.py, and are described there: final samples agree
to 1e-3, single passes to 1e-4, losses to 1e-4 and router gradients to 1e-3, both relative.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import l2c
from l2c.diffusion import Guidance, NoiseSchedule, make_solver
from l2c.sampling.denoiser import Denoiser
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import DataPairs

PASS = {"rtol": 0, "atol": 1e-4}
FINAL = {"rtol": 0, "atol": 1e-3}
LOSS = {"rtol": 1e-4, "atol": 0}
GRADIENT = {"rtol": 1e-3, "atol": 1e-7}


class Data:
    """The files of one folder, read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = cache(lambda name: load_file(folder / f"{name}.safetensors"))
        self.meta = cache(lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))

    def routers(self, name: str) -> dict[str, torch.Tensor]:
        content = torch.load(self.folder / name, weights_only=True)
        return content.get("routers", content)


@pytest.fixture(scope="module")
def data(reference: Path) -> Data:
    return Data(reference / "parity")


@pytest.fixture(scope="module")
def dit(data: Data) -> l2c.DiT:
    net = l2c.DiT(**data.meta("dit_meta")["cfg"])
    net.load_state_dict(data.tensors("dit_weights"), strict=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def uvit(data: Data) -> l2c.UViT:
    arguments = {key: value for key, value in data.meta("uvit_meta")["cfg"].items() if key != "use_checkpoint"}
    net = l2c.UViT(**arguments)
    net.load_state_dict(data.tensors("uvit_weights"), strict=True)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def trace(sampler: l2c.Sampler, labels: torch.Tensor, noise: torch.Tensor):
    """Return the states at each evaluation, the guided outputs, and the final x."""
    denoiser = Denoiser(sampler.backbone, labels, sampler.guidance, sampler.graph)
    states, outputs = [], []

    def model(x, t):
        states.append(x)
        outputs.append(denoiser(x, t))
        return outputs[-1]

    final = sampler.solver.sample(model, noise)
    return torch.stack(states), torch.stack(outputs), final


# --- DiT ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_dit_forward_and_its_parts(dit, data):
    expected, inputs = data.tensors("dit_samples"), data.tensors("dit_inputs")
    parts = {}
    dit.blocks[0].register_forward_pre_hook(lambda _, args: parts.update(x_embed=args[0]))
    dit.final_layer.adaLN_modulation.register_forward_pre_hook(lambda _, args: parts.update(c=args[0]))
    for b, block in enumerate(dit.blocks):
        block.register_forward_hook(lambda _, args, output, b=b: parts.update({f"block{b}": output[0]}))
    parts["out"] = dit(inputs["z"], expected["fwd.t"], inputs["y"])
    for name in ("x_embed", "c", "block0", "block1", "block2", "block3", "out"):
        torch.testing.assert_close(parts[name], expected[f"fwd.{name}"], **PASS)


def test_dit_positions_are_the_published_ones(dit, data):
    fresh = l2c.DiT(**data.meta("dit_meta")["cfg"])
    torch.testing.assert_close(fresh.pos_embed, dit.pos_embed, rtol=0, atol=1e-6)


@torch.no_grad()
def test_dit_guided_output(dit, data):
    inputs = data.tensors("dit_inputs")
    denoiser = Denoiser(dit, inputs["y"][:4], Guidance("dit", data.meta("dit_meta")["cfg_scale"]))
    output = denoiser(inputs["z"][:4], 500.0)
    torch.testing.assert_close(output, data.tensors("dit_samples")["fwd.cfg_out"][:4], **PASS)


def test_dit_schedule(data):
    expected = data.tensors("dit_samples")
    solver = make_solver("ddpm", NoiseSchedule("linear"), 20)
    assert list(solver.timesteps) == data.meta("dit_meta")["ddim20"]["timestep_map"][::-1]
    abar = np.array([solver.marginal(e)[0] ** 2 for e in reversed(range(20))])
    abar_prev = np.append(1.0, abar[:-1])
    betas = 1 - abar / abar_prev
    for name, got in (
        ("alphas_cumprod", abar),
        ("alphas_cumprod_prev", abar_prev),
        ("betas", betas),
        ("posterior_variance", betas * (1 - abar_prev) / (1 - abar)),
    ):
        np.testing.assert_allclose(got, expected[f"sched20.{name}"].numpy(), rtol=1e-9, atol=1e-15)


def test_ddpm_step_uses_the_published_posterior(data, monkeypatch):
    """Mean and log variance of each step, read off single steps with chosen outputs."""
    expected = {name: value.tolist() for name, value in data.tensors("dit_samples").items() if "sched20" in name}
    ones = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    monkeypatch.setattr("l2c.diffusion.ddim.draw_noise", lambda like, generator: torch.ones_like(like))
    solver = make_solver("ddpm", NoiseSchedule("linear"), 20)

    def step(e, eps, variance):
        trajectory = solver.trajectory(ones, first_step=e)
        next(trajectory)
        return trajectory.send(torch.cat([eps * ones, variance * ones], dim=1)).x.item()

    for e in range(19):
        i = 19 - e
        abar = expected["sched20.alphas_cumprod"][i]
        for eps in (0.0, 1.0):
            x_0 = (1 - (1 - abar) ** 0.5 * eps) / abar**0.5
            mean = expected["sched20.posterior_mean_coef1"][i] * x_0 + expected["sched20.posterior_mean_coef2"][i]
            log_least = expected["sched20.posterior_log_variance_clipped"][i]
            for variance, log_variance in ((-1.0, log_least), (1.0, np.log(expected["sched20.betas"][i]))):
                assert step(e, eps, variance) == pytest.approx(mean + np.exp(log_variance / 2), rel=1e-8)


@pytest.mark.parametrize("mode", ["uncached", "cached"])
def test_dit_ddim_samples(dit, data, mode):
    expected, inputs, meta = data.tensors("dit_samples"), data.tensors("dit_inputs"), data.meta("dit_meta")
    graph = None
    if mode == "cached":
        graph = l2c.import_l2c_router(
            data.folder / "dit_router_ddim20.pt", dit, solver="ddim", num_evaluations=20, threshold=meta["thres"]
        )
    sampler = l2c.Sampler(dit, graph=graph, solver="ddim", num_evaluations=20, cfg_scale=meta["cfg_scale"])
    labels, noise = inputs["y"][:4], inputs["z"][:4]
    states, _, final = trace(sampler, labels, noise)
    steps = expected[f"ddim20.{mode}.x"][:, :4]
    torch.testing.assert_close(final, expected[f"ddim20.{mode}.final"][:4], **FINAL)
    torch.testing.assert_close(torch.stack([*states[1:], final]), steps, **FINAL)
    torch.testing.assert_close(
        sampler.sample(labels, noise=noise), final, rtol=0, atol=1e-5
    )  # conditions all at once
    other = expected[f"ddim20.{'uncached' if mode == 'cached' else 'cached'}.final"][:4]
    assert (final - other).abs().max() > 0.01  # the tolerance tells cached from uncached


def test_dit_ddpm_samples_with_given_noise(dit, data, monkeypatch):
    expected, inputs = data.tensors("dit_samples"), data.tensors("dit_inputs")
    given = iter(expected["ddpm20.noise"][:, :4])
    monkeypatch.setattr("l2c.diffusion.ddim.draw_noise", lambda like, generator: next(given))
    sampler = l2c.Sampler(dit, solver="ddpm", num_evaluations=20, cfg_scale=data.meta("dit_meta")["cfg_scale"])
    states, _, final = trace(sampler, inputs["y"][:4], inputs["z"][:4])
    torch.testing.assert_close(final, expected["ddpm20.uncached.final"][:4], **FINAL)
    steps = expected["ddpm20.uncached.x"][:, :4]
    torch.testing.assert_close(torch.stack([*states[1:], final]), steps, **FINAL)


@pytest.mark.parametrize("ts", [9, 19])
def test_dit_router_objective(dit, data, ts):
    """The pair starts at respaced index ts, the routed one is index ts - 1: evaluation 20 - ts."""
    tensors = data.tensors("dit_router_loss")
    expected = {name.removeprefix(f"ts{ts}."): value for name, value in tensors.items()}
    solver = make_solver("ddim", NoiseSchedule("linear"), 20)
    evaluation = 20 - ts
    pairs = DataPairs(dit, solver, (evaluation,))
    y = torch.where(expected["drop_mask"].bool(), 10, expected["y"])
    start = pairs.start(expected["x0"], expected["noise"], evaluation)
    torch.testing.assert_close(start, expected["x_t"], **PASS)
    times = torch.full((8,), solver.timesteps[evaluation - 1])
    torch.testing.assert_close(dit(start, times, y), expected["feat_out"], **PASS)
    pair = pairs.pair(expected["x0"], expected["noise"], y, evaluation)
    torch.testing.assert_close(pair.x, expected["x_next"], **PASS)
    torch.testing.assert_close(pair.teacher, expected["teacher"], **PASS)

    logits = data.routers("dit_router_loss_init.pt")[f"{ts - 1}.prob"].clone().requires_grad_()
    assert torch.equal(logits, expected["logits"])
    row = torch.sigmoid(logits)
    student, _ = dit.forward_cached(pair.x, pair.t, pair.y, row, pair.cache)
    torch.testing.assert_close(student, expected["student"], **PASS)
    objective = LearningToCache(dit, penalty=1e-3, layer_weights=torch.ones(8), error="mean")
    loss = objective(pair, row)
    torch.testing.assert_close(loss.per_sample, expected["mse"], **LOSS)
    torch.testing.assert_close(loss.penalty.reshape(1), expected["l1"], **LOSS)
    torch.testing.assert_close(loss.loss.reshape(1), expected["loss"], **LOSS)
    (of_error,) = torch.autograd.grad(loss.error, logits, retain_graph=True)
    (of_loss,) = torch.autograd.grad(loss.loss, logits)
    torch.testing.assert_close(of_error, expected["grad_mse_only"], **GRADIENT)
    torch.testing.assert_close(of_loss, expected["grad"], **GRADIENT)


# --- U-ViT --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_uvit_forward(uvit, data):
    expected, inputs = data.tensors("uvit_samples"), data.tensors("uvit_inputs")
    output = uvit(inputs["z"], expected["fwd.t"], inputs["y"])
    torch.testing.assert_close(output, expected["fwd.out"], **PASS)


def test_uvit_schedule(data):
    expected = {
        name: value.double().numpy() for name, value in data.tensors("uvit_samples").items() if "x_in" not in name
    }
    schedule = NoiseSchedule("scaled_linear", 1)
    np.testing.assert_allclose(schedule.betas, expected["sched.betas_f32"], rtol=1e-6)
    discrete = [schedule.log_alpha(index) for index in range(1000)]
    np.testing.assert_allclose(discrete, expected["sched.log_alpha_discrete"], rtol=1e-4)
    indices = expected["sched.t"] * 1000 - 1
    for name, got in (
        ("log_alpha", schedule.log_alpha),
        ("std", lambda index: schedule.marginal(index)[1]),
        ("lambda", schedule.half_log_snr),
    ):
        values = [got(max(index, 0.0)) for index in indices]
        np.testing.assert_allclose(values, expected[f"sched.{name}"], rtol=1e-4, atol=1e-4)
    inverse = [(schedule.index_of(value) + 1) / 1000 for value in expected["sched.lambda"]]
    np.testing.assert_allclose(inverse, expected["sched.inv_lambda"], rtol=0, atol=1e-5)


def test_uvit_timesteps(data):
    expected = data.tensors("uvit_samples")
    timesteps = make_solver("dpm_solver_2s", NoiseSchedule("scaled_linear", 1), 20).timesteps
    np.testing.assert_allclose(timesteps, expected["dpm20.t_network"].numpy(), rtol=0, atol=2e-3)
    np.testing.assert_allclose(timesteps, 1000 * expected["dpm20.t_continuous"].numpy(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("mode", ["uncached", "cached"])
def test_uvit_dpm_solver_samples(uvit, data, mode):
    expected, inputs, meta = data.tensors("uvit_samples"), data.tensors("uvit_inputs"), data.meta("uvit_meta")
    solver, graph = {"solver": "dpm_solver_2s", "num_evaluations": 20}, None
    if mode == "cached":
        path = data.folder / "uvit_router_dpm20.pth"
        graph = l2c.import_l2c_router(path, uvit, **solver, threshold=meta["thres"])
    sampler = l2c.Sampler(uvit, graph=graph, **solver, cfg_scale=meta["scale"])
    states, outputs, final = trace(sampler, inputs["y"], inputs["z"])
    torch.testing.assert_close(states, expected[f"dpm20.{mode}.x_in"], **FINAL)
    torch.testing.assert_close(outputs, expected[f"dpm20.{mode}.eps"], **FINAL)
    torch.testing.assert_close(final, expected[f"dpm20.{mode}.final"], **FINAL)
    assert torch.equal(sampler.sample(inputs["y"], noise=inputs["z"]), final)
    other = expected[f"dpm20.{'uncached' if mode == 'cached' else 'cached'}.final"]
    assert (final - other).abs().max() > 0.01  # the tolerance tells cached from uncached


def test_uvit_router_objective(uvit, data):
    """Solver step 4 leads to the routed evaluation 10, the first of step 5."""
    tensors = data.tensors("uvit_router_loss")
    expected = {name.removeprefix("k4."): value for name, value in tensors.items()}
    solver = make_solver("dpm_solver_2s", NoiseSchedule("scaled_linear", 1), 20)
    pairs = DataPairs(uvit, solver, (10,), round_times=True)
    start = pairs.start(expected["x0"], expected["noise"], 10)
    torch.testing.assert_close(start, expected["x_n"], **PASS)
    pair = pairs.pair(expected["x0"], expected["noise"], expected["y"], 10)
    torch.testing.assert_close(pair.x, expected["x_next"], **PASS)
    torch.testing.assert_close(pair.teacher, expected["teacher"], **PASS)

    logits = data.routers("uvit_router_loss_init.pth")["5.prob"].clone().requires_grad_()
    row = torch.sigmoid(logits)
    student, _ = uvit.forward_cached(pair.x, pair.t, pair.y, row, pair.cache)
    torch.testing.assert_close(student, expected["student"], **PASS)
    objective = LearningToCache(uvit, penalty=0.1, layer_weights=torch.ones(10), error="sum")
    loss = objective(pair, row)
    torch.testing.assert_close(loss.per_sample, expected["sos"], **LOSS)
    torch.testing.assert_close(loss.penalty.reshape(1), expected["l1"], **LOSS)
    torch.testing.assert_close(loss.loss.reshape(1), expected["loss"], **LOSS)
    (of_error,) = torch.autograd.grad(loss.error, logits, retain_graph=True)
    (of_loss,) = torch.autograd.grad(loss.loss, logits)
    torch.testing.assert_close(of_error, expected["grad_data_only"], **GRADIENT)
    torch.testing.assert_close(of_loss, expected["grad"], **GRADIENT)
