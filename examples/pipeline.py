"""A diffusers pipeline at half of its MACs: python examples/pipeline.py PATH "a prompt"

PATH is a folder that `save_pretrained` wrote, or a name on the Hub. The first call calibrates; later ones find the
calibration on disk.
"""

import sys

import torch
from diffusers import DiffusionPipeline

import l2c

path, prompt = sys.argv[1:3]
pipe = DiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32)
settings = {"num_inference_steps": 20, "guidance_scale": 4.5}
graph = l2c.accelerate(pipe, [prompt], budget=0.5, **settings)
print(graph.summary())
pipe(prompt, generator=torch.Generator().manual_seed(0), **settings).images[0].save("cached.png")
l2c.remove(pipe)
pipe(prompt, generator=torch.Generator().manual_seed(0), **settings).images[0].save("uncached.png")
