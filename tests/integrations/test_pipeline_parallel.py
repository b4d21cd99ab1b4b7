"""Graphs on models that two processes share: sequences split (context parallelism), weights split (FSDP2).

The processes talk by gloo on the processor. Both orders: the model is split before the graph is applied, or after.
"""

from __future__ import annotations

import os
import socket
from functools import partial

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")
if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

import torch.multiprocessing
from diffusers import ContextParallelConfig
from test_pipeline_composition import graph_of
from tiny_pipelines import STEPS, tiny_pipeline
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import l2c
from l2c.backbones.digest import weights_digest
from l2c.integrations.diffusers import ROOT, applied, denoiser_of
from l2c.integrations.diffusers.layers import find_layers
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.sampling.solver_settings import SolverSettings
from l2c.training.routers.run import train_routers
from l2c.training.routers.settings import NoiseSettings, RouterTraining
from l2c.training.settings import TrainerSettings

OPTIONS = {"flux": {"max_sequence_length": 8}, "wan21": {"height": 32, "width": 32}}  # numbers of tokens are even
ORDERS = ("before", "after")


def split_sequence(model):
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


def split_weights(model):
    mesh = init_device_mesh("cpu", (2,))
    for block in (*model.transformer_blocks, *model.single_transformer_blocks, model):
        fully_shard(block, mesh=mesh)


def differences(name, split, order, *, of=None):
    """Return how far plain and cached images of a split model are from those of one process, and the memory kept."""
    tiny = tiny_pipeline(name)
    tiny.pipe.set_progress_bar_config(disable=True)
    draw, model, held = partial(tiny.draw, **OPTIONS[name]), denoiser_of(tiny.pipe), []
    graph = graph_of(tiny.pipe, draw)
    layers = find_layers(model, of=of)
    graph = graph.replace(
        layers=layers, rows=[row[: len(layers)] for row in graph.rows], fingerprint=weights_digest(model.state_dict())
    )
    plain = draw()
    model.register_forward_hook(
        lambda model, *_: held.append(getattr(model._diffusers_hook.hooks.get(ROOT), "cached_bytes", 0))
    )
    with applied(tiny.pipe, graph):
        expected, alone = draw(), max(held)
    held.clear()
    if order == "before":
        split(model)
    l2c.apply(tiny.pipe, graph)
    if order == "after":
        split(model)
    cached = [draw() for _ in range(2)]
    l2c.remove(tiny.pipe)
    return {
        "cached": max(float((image - expected).abs().max()) for image in cached),
        "plain": float((draw() - plain).abs().max()),
        "effect": float((expected - plain).abs().max()),
        "bytes": max(held) / alone,
    }


def calibrated():
    """Return by how much a sharded model's calibration differs from that of the whole one, and what is bound."""
    tiny = tiny_pipeline("flux")
    found = []
    for _ in range(2):
        backbone = pipeline_backbone(
            tiny.pipe, tiny.prompts[:1], num_evaluations=STEPS, guidance_scale=tiny.scale, options=tiny.options
        )
        sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS, cfg_scale=tiny.scale)
        how = {"responses": {"method": "forward"}, "num_trajectories": 1, "batch_size": 1, "true_errors": 0}
        found.append(l2c.Calibration.measure(sampler, what=("responses",), **how))
        if len(found) == 1:
            split_weights(denoiser_of(tiny.pipe))
    alone, shared = found
    error = (shared.tensor("responses") - alone.tensor("responses")).abs().max()
    return {"error": float(error), "same": shared.binding == alone.binding}


def trained(folder):
    """Return the logits of routers trained by two processes on a whole model, and on one that they share."""
    solver = SolverSettings(name="pipeline", num_evaluations=STEPS, cfg_scale=tiny_pipeline("flux").scale)
    settings = RouterTraining(
        solver=solver,
        data=NoiseSettings(name="prompts", batch_size=2),
        trainer=TrainerSettings(max_steps=3, accelerator="cpu", devices=2, enable_progress_bar=False),
    )
    logits = []
    for name in ("whole", "shared"):
        tiny = tiny_pipeline("flux")
        if name == "shared":
            split_weights(denoiser_of(tiny.pipe))
        backbone = pipeline_backbone(
            tiny.pipe, tiny.prompts[:1], num_evaluations=STEPS, guidance_scale=tiny.scale, options=tiny.options
        )
        with torch.enable_grad():
            train_routers(backbone, settings, f"{folder}/{name}")
        logits.append(torch.load(f"{folder}/{name}/last.ckpt", weights_only=True)["state_dict"])
    return logits


def work(rank, folder, port):
    # As torchrun tells its processes.
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in told.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="tests")
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it; the processor counts as none
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {("sequence", order): differences("flux", split_sequence, order) for order in ORDERS}
    found |= {("blocks", order): differences("wan21", split_sequence, order, of=("block",)) for order in ORDERS}
    found |= {("weights", order): differences("flux", split_weights, order) for order in ORDERS}
    found["calibration"] = calibrated()
    found["routers"] = trained(folder)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (str(folder), port), nprocs=2)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", ["sequence", "blocks"])
def test_context_parallel(found, case, order):
    result = found[case, order]
    assert result["cached"] < 1e-5 < 1e-3 < result["effect"]
    assert result["plain"] < 1e-5
    assert result["bytes"] == 0.5  # each process keeps the outputs of its own tokens


@pytest.mark.parametrize("order", ORDERS)
def test_sharded_weights(found, order):
    result = found["weights", order]
    assert result["cached"] == result["plain"] == 0
    assert result["effect"] > 1e-3


def test_calibration_of_sharded_weights(found):
    assert found["calibration"] == {"error": 0.0, "same": True}


def test_routers_of_sharded_weights(found):
    whole, shared = found["routers"]
    assert any(not torch.equal(logits, torch.full_like(logits, 2.0)) for logits in whole.values())
    assert whole.keys() == shared.keys()
    for name, logits in whole.items():
        assert torch.equal(logits, shared[name])
