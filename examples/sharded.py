"""Calibrate a pipeline whose transformer several processes share, its weights split by FSDP2:

torchrun --nproc-per-node 8 examples/sharded.py PIPELINE prompts.txt mine.safetensors
"""

import argparse
import os
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import l2c
from l2c.integrations.diffusers import denoiser_of
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("pipeline", help="a folder of save_pretrained, or a name on the Hub")
options.add_argument("prompts", type=Path, help="a file with one prompt a line")
options.add_argument("output", type=Path, help="the calibration")
options.add_argument("--layers", nargs="+", default=["output"], help="kinds of layers: output, layer, block")
options.add_argument("--method", default="forward", help="forward, or gradient where activations fit")
options.add_argument("--steps", type=int, default=20)
options.add_argument("--guidance-scale", type=float)
options.add_argument("--trajectories", type=int, default=8)
options.add_argument("--directions", type=int, default=8, help="of each trajectory")
options.add_argument("--true-errors", type=int, default=8)
options.add_argument("--group", type=int, default=1, help="layers measured together by forward passes, see the page")
options.add_argument("--num-frames", type=int, help="of videos")
options.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
given = options.parse_args()

gpus = torch.cuda.is_available()
torch.distributed.init_process_group("nccl" if gpus else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
if gpus:
    torch.cuda.set_device(device)
pipe = DiffusionPipeline.from_pretrained(given.pipeline, torch_dtype=torch.bfloat16 if gpus else torch.float32)
model = denoiser_of(pipe)
mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
for blocks in [part for part in model.children() if isinstance(part, nn.ModuleList)]:
    for block in blocks:
        fully_shard(block, mesh=mesh)  # moves its part to the device; the whole model is on none
fully_shard(model, mesh=mesh)
for part in pipe.components.values():
    if isinstance(part, nn.Module) and part is not model:
        part.to(device)

call = dict(zip(("height", "width"), given.size or (), strict=False))
if given.num_frames:
    call["num_frames"] = given.num_frames
backbone = pipeline_backbone(
    pipe,
    given.prompts.read_text(encoding="utf-8").splitlines(),
    num_evaluations=given.steps,
    guidance_scale=given.guidance_scale,
    of=given.layers,
    options=call,
)
sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=given.steps, cfg_scale=given.guidance_scale)
calibration = l2c.Calibration.measure(  # every process measures the same, on its part of the weights
    sampler,
    num_trajectories=given.trajectories,
    batch_size=1,
    true_errors=given.true_errors,
    responses={"method": given.method, "num_probes": given.directions, "group": given.group},
)
if torch.distributed.get_rank() == 0:
    calibration.save(given.output)
    print(f"wrote {given.output}: {calibration!r}")
torch.distributed.destroy_process_group()
