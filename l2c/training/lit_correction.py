"""Training of what stands in for reused layers, by distillation along the cached trajectory.

Block Caching (CVPR 2024, section 3.4) trains scales and shifts as a linear map of the timestep embedding, at one
evaluation at a time. Here slopes are trained too, and the whole trajectory may be differentiated, so that the final
image decides.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from l2c.backbones.dit import timestep_embedding
from l2c.graph import FITTED, CacheGraph
from l2c.sampling.correction import reused_entries
from l2c.sampling.sampler import Sampler

LOSSES = ("image", "output")
EMBEDDING_SIZE = 256


class LitCorrection(pl.LightningModule):
    """Distil the uncached sampler into a graph's stand-ins; a training step is a trajectory of its batch.

    Args:
        sampler: uncached; brings backbone, solver and guidance.
        graph: what is reused when; its rows stay as they are.
        loss: `image`: error of the final image against the uncached one from the same noise, through the whole
            trajectory. `output`: error of each evaluation's output against a full pass at the same state, the
            student following its own trajectory (the publication).
        slopes: train the slope of each entry.
        scale_shift: train scales and shifts.
        max_steps: length of the cosine down to 0.
        slope_rate: peak learning rate of the slopes.
        scale_shift_rate: about the largest change of a scale or a shift in one step.

    """

    def __init__(
        self,
        sampler: Sampler,
        graph: CacheGraph,
        *,
        loss: str = "image",
        slopes: bool = True,
        scale_shift: bool = True,
        max_steps: int = 100,
        slope_rate: float = 0.02,
        scale_shift_rate: float = 0.003,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not (slopes or scale_shift):
            raise ValueError("slopes=false and scale_shift=false leave nothing to train; set one of them to true")
        self.sampler, self.graph, self.loss, self.max_steps = sampler, graph, loss, max_steps
        self.backbone = sampler.backbone  # a submodule, so that Lightning moves it to the device
        self.scale_shift = scale_shift
        self.rates = (slope_rate if slopes else 0.0, scale_shift_rate if scale_shift else 0.0)
        self.entries = reused_entries(graph)
        if not self.entries:
            raise ValueError("the graph reuses nothing, so there is nothing to correct; take one that does")
        layer_shape = self.backbone.layer_shape
        assert layer_shape is not None, "ours all know it"
        start = [graph.slopes[e][layer] for e, layer in self.entries]
        self.slopes = nn.Parameter(torch.tensor(start), requires_grad=slopes)
        shape = (graph.num_layers, EMBEDDING_SIZE, 2 * layer_shape[1])
        self.maps = nn.Parameter(torch.zeros(shape), requires_grad=scale_shift)
        embedding = timestep_embedding(torch.tensor(graph.timesteps), EMBEDDING_SIZE)  # (E, embedding size)
        self.register_buffer("embedding", embedding / embedding.abs().sum(dim=1, keepdim=True), persistent=False)
        self.strict_loading = False  # a checkpoint holds no backbone, see on_save_checkpoint

    def corrections(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift, (R, D) each, of all reused entries."""
        evaluations, layers = (
            torch.tensor(index, device=self.maps.device) for index in zip(*self.entries, strict=True)
        )
        assert isinstance(self.embedding, Tensor)
        change = torch.einsum("rk,rkd->rd", self.embedding[evaluations], self.maps[layers])
        scale, shift = change.chunk(2, dim=1)
        return 1 + scale, shift

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of noise (N, C, H, W) and labels (N,)."""
        noise, labels = batch
        y = labels if self.backbone.num_labels else None
        if self.loss == "output":
            _, loss = self.walk(noise, y, teach=True)
        else:
            images, _ = self.walk(noise, y)
            error = (images - self.sampler.sample(y, noise=noise)).square().flatten(1).mean(dim=1)  # (N,)
            loss = error.clamp_min(1e-12).sqrt().mean()  # of squares a few images would be all that counts
            self.log("train/error", error.mean().detach())
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def walk(self, noise: Tensor, y: Tensor | None, *, teach: bool = False) -> tuple[Tensor, Tensor]:
        """Follow the cached trajectory; return its images (N, C, H, W) and, with `teach`, the loss of its outputs."""
        backbone, guidance, graph = self.backbone, self.sampler.guidance, self.graph
        if guidance.active and y is not None:
            y = torch.cat([y, torch.full_like(y, backbone.conventions.null_label or 0)])  # (2 N,)
        scale, shift = self.corrections()
        index = {entry: i for i, entry in enumerate(self.entries)}
        computed: list[list[Tensor]] = [[] for _ in graph.layers]
        loss = noise.new_zeros(())
        trajectory = self.sampler.solver.trajectory(noise)
        request = next(trajectory)
        while True:
            e, row = request.index, graph.rows[request.index]
            x = torch.cat([request.x, request.x]) if guidance.active else request.x
            times = torch.full((len(x),), request.t, device=x.device)
            cache: list[Tensor | None] = [None] * len(row)
            for layer in (layer for layer, fresh in enumerate(row) if not fresh):
                i, (value, *earlier) = index[e, layer], computed[layer]
                if earlier:
                    value = torch.lerp(earlier[0], value, 1 + self.slopes[i])
                cache[layer] = torch.addcmul(shift[i], value, scale[i]) if self.scale_shift else value
            output, outputs = backbone.forward_cached(x, times, y, row, cache)
            if teach and not all(row):
                with torch.no_grad():
                    teacher = backbone(x, times, y)
                loss = loss + (output - teacher).square().mean()
            for layer in (layer for layer, fresh in enumerate(row) if fresh):
                fresh_output = outputs[layer]
                assert fresh_output is not None
                computed[layer] = [fresh_output.detach() if teach else fresh_output, *computed[layer][:1]]
            guided = guidance.combine(*output.chunk(2)) if guidance.active else output
            try:
                request = trajectory.send(guided.detach() if teach else guided)
            except StopIteration as stop:
                return stop.value, loss

    @torch.no_grad()
    def corrected(self) -> tuple[CacheGraph, Tensor | None, Tensor | None]:
        """Return the graph with the trained slopes, and scale and shift (R, D) where they were trained."""
        graph, (scale, shift) = self.graph, self.corrections()
        if self.rates[0]:
            slopes = dict(zip(self.entries, self.slopes.tolist(), strict=True))
            fitted = tuple(
                tuple(round(slopes[e, layer], 6) for layer, fresh in enumerate(row) if not fresh)
                for e, row in enumerate(graph.rows)
            )
            graph = graph.replace(reuse=(FITTED,) * len(graph.rows), fitted=fitted)
        return (graph, scale, shift) if self.scale_shift else (graph, None, None)

    def configure_optimizers(self) -> Any:
        """Return Adam with a cosine down to 0."""
        groups = [
            {"params": [parameter], "lr": rate}
            for parameter, rate in zip((self.slopes, self.maps), self.rates, strict=True)
            if rate
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.max_steps)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen backbone out of the checkpoint."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith("backbone.")}
