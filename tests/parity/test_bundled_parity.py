"""Equality with an independent implementation on the tensors that travel with the tests (tests/data/parity).

Weights are rounded to 16 bits there to keep the folder small, so that tolerances are those of that rounding: final
samples moved by up to 2.4e-3 when measured. Typical mistakes are far outside: caching after the gate moves them by
0.04, attention and MLP swapped by 0.035, the router's sign by 0.07, an index counted from the noisy end by 0.05.
The full set, with exact weights, is compared where it lies beside the checkout (test_parity.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import l2c
from l2c.diffusion import NoiseSchedule, make_solver
from l2c.training.routers.objectives import LearningToCache
from l2c.training.routers.pairs import DataPairs

FOLDER = Path(__file__).resolve().parents[1] / "data" / "parity"
ROUNDED = {"rtol": 0, "atol": 8e-3}


def tensors(prefix: str) -> dict[str, torch.Tensor]:
    content = load_file(FOLDER / "dit.safetensors")
    return {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def meta() -> dict:
    return json.loads((FOLDER / "dit_meta.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dit(meta) -> l2c.DiT:
    net = l2c.DiT(**meta["cfg"])
    weights = {name: value.float() for name, value in tensors("weights.").items()}
    net.load_state_dict({**weights, "pos_embed": net.pos_embed}, strict=True)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("mode", ["uncached", "cached"])
def test_dit_samples(dit, meta, mode):
    expected, inputs = tensors("samples."), tensors("inputs.")
    graph = None
    if mode == "cached":
        path = FOLDER / "dit_router_ddim20.pt"
        graph = l2c.import_l2c_router(path, dit, solver="ddim", num_evaluations=20, threshold=meta["thres"])
    sampler = l2c.Sampler(dit, graph=graph, solver="ddim", num_evaluations=20, cfg_scale=meta["cfg_scale"])
    final = sampler.sample(inputs["y"], noise=inputs["z"])
    torch.testing.assert_close(final, expected[f"ddim20.{mode}.final"], **ROUNDED)
    other = expected[f"ddim20.{'uncached' if mode == 'cached' else 'cached'}.final"]
    assert (final - other).abs().max() > 0.01


def test_dit_rows_are_the_published_ones(dit, meta):
    graph = l2c.import_l2c_router(
        FOLDER / "dit_router_ddim20.pt", dit, solver="ddim", num_evaluations=20, threshold=meta["thres"]
    )
    routers = torch.load(FOLDER / "dit_router_ddim20.pt", weights_only=True)["routers"]
    for e, row in enumerate(graph.rows):
        index = 19 - e  # routers count timesteps upwards, even ones are routed
        bits = torch.sigmoid(routers[f"{index}.prob"]) > meta["thres"]
        assert list(row) == (bits.tolist() if index % 2 == 0 else [True] * 8)


def test_dit_router_objective(dit):
    """The pair starts at respaced index 9; the routed evaluation is number 11."""
    expected = tensors("loss.ts9.")
    shared = {name: value for name, value in tensors("loss.").items() if not name.startswith("ts")}
    solver = make_solver("ddim", NoiseSchedule("linear"), 20)
    pairs = DataPairs(dit, solver, (11,))
    y = torch.where(expected["drop_mask"].bool(), 10, shared["y"])
    start = pairs.start(shared["x0"], expected["noise"], 11)
    torch.testing.assert_close(start, expected["x_t"], rtol=0, atol=1e-4)  # no weights in it
    pair = pairs.pair(shared["x0"], expected["noise"], y, 11)
    torch.testing.assert_close(pair.teacher, expected["teacher"], **ROUNDED)
    logits = expected["logits"].clone().requires_grad_()
    loss = LearningToCache(dit, penalty=1e-3, layer_weights=torch.ones(8), error="mean")(pair, torch.sigmoid(logits))
    torch.testing.assert_close(loss.per_sample, expected["mse"], rtol=0.02, atol=0)
    torch.testing.assert_close(loss.loss.reshape(1), expected["loss"], rtol=2e-3, atol=0)
    (of_error,) = torch.autograd.grad(loss.error, logits)
    torch.testing.assert_close(of_error, expected["grad_mse_only"], rtol=0.05, atol=1e-6)


def test_uvit_timesteps_and_routed_evaluations():
    expected = load_file(FOLDER / "uvit_schedule.safetensors")
    meta = json.loads((FOLDER / "uvit_meta.json").read_text(encoding="utf-8"))
    arguments = {key: value for key, value in meta["cfg"].items() if key != "use_checkpoint"}
    solver = make_solver("dpm_solver_2s", NoiseSchedule("scaled_linear", 1), 20)
    np.testing.assert_allclose(solver.timesteps, expected["dpm20.t_network"].numpy(), rtol=0, atol=2e-3)
    graph = l2c.import_l2c_router(
        FOLDER / "uvit_router_dpm20.pth",
        l2c.UViT(**arguments).eval(),
        solver="dpm_solver_2s",
        num_evaluations=20,
        threshold=meta["thres"],
    )
    assert graph.routed == tuple(range(2, 20, 2))
