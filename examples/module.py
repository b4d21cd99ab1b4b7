"""A module of your own with a policy and the sampler: python examples/module.py"""

import torch
from torch import nn

import l2c
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph


class Denoiser(nn.Module):
    """Pixels as tokens, time as one more channel; any module that predicts noise from x and t works."""

    def __init__(self, channels: int = 3, width: int = 48, depth: int = 6) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(channels + 1, width), nn.Linear(width, channels)
        self.mixers = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (N, T, C)
        time = (t / 1000)[:, None, None].expand(*tokens.shape[:2], 1)
        tokens = self.embed(torch.cat([tokens, time], dim=2))
        for mixer, mlp in zip(self.mixers, self.mlps, strict=True):
            tokens = tokens + mixer(tokens)
            tokens = tokens + mlp(tokens)
        return self.out(tokens).transpose(1, 2).view_as(x)


torch.manual_seed(0)
backbone = l2c.wrap(Denoiser(), layers=["mixers.*", "mlps.*"], timestep="t", input_shape=(3, 8, 8))
uncached = l2c.Sampler(backbone, solver="ddim", num_evaluations=20)
graph = make_graph("interval", PolicyContext.of(uncached), budget=0.6)
print(graph.summary())

noise = torch.randn(4, 3, 8, 8)
cached = l2c.Sampler(backbone, graph=graph)
error = (cached.sample(noise=noise) - uncached.sample(noise=noise)).square().mean()
print(f"mean squared error {error:.2e}")
