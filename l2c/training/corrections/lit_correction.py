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
from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.correction import layer_widths, reused_entries
from l2c.sampling.gradients import differentiable
from l2c.sampling.sampler import Sampler
from l2c.sampling.unrolled import image_loss, unroll, with_slopes
from l2c.training.corrections.settings import LOSSES

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
        if loss == "image" and not differentiable(sampler.solver, self.backbone.input_shape):
            raise ValueError(
                f"loss=image needs a solver whose steps can be differentiated, but those of {graph.solver} cannot; "
                "take loss=output"
            )
        start = [graph.slopes[e][layer] for e, layer in self.entries]
        self.slopes = nn.Parameter(torch.tensor(start), requires_grad=slopes)
        self.widths = layer_widths(self.backbone)
        # The channels of all layers side by side: (embedding size, scale and shift, channels).
        self.maps = nn.Parameter(torch.zeros(EMBEDDING_SIZE, 2, sum(self.widths)), requires_grad=scale_shift)
        # Some pipelines count time from 1 to 0, where the frequencies of the embedding tell nothing apart.
        times = torch.tensor(graph.timesteps) * (1000 if graph.timesteps[0] <= 1 else 1)
        embedding = timestep_embedding(times, EMBEDDING_SIZE)  # (E, embedding size)
        self.register_buffer("embedding", embedding / embedding.abs().sum(dim=1, keepdim=True), persistent=False)
        self.strict_loading = False  # a checkpoint holds no backbone, see on_save_checkpoint

    def corrections(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return scale and shift of all reused entries, R rows (D,) each; layers may differ in D."""
        assert isinstance(self.embedding, Tensor)
        change = torch.einsum("ek,kcd->ecd", self.embedding, self.maps).split(self.widths, dim=2)  # by layer
        scale = [1 + change[layer][e, 0] for e, layer in self.entries]
        return scale, [change[layer][e, 1] for e, layer in self.entries]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of noise (N, C, H, W) and labels (N,)."""
        noise, labels = batch
        y = labels if self.backbone.num_labels else None
        if self.loss == "output":
            _, loss = self.walk(noise, y, teach=True)
        else:
            images, _ = self.walk(noise, y)
            loss, error = image_loss(images, self.sampler.sample(y, noise=noise))
            self.log("train/error", error)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def walk(self, noise: Tensor, y: Tensor | None, *, teach: bool = False) -> tuple[Tensor, Tensor]:
        """Follow the trajectory with today's slopes, scales and shifts; see `unroll`."""
        corrections = self.corrections() if self.scale_shift else None
        return unroll(self.sampler, self.graph, noise, y, self.slopes, corrections, teach=teach)

    @torch.no_grad()
    def corrected(self) -> tuple[CacheGraph, list[Tensor] | None, list[Tensor] | None]:
        """Return the graph with the trained slopes, and scale and shift (R rows) where they were trained."""
        graph = with_slopes(self.graph, self.slopes) if self.rates[0] else self.graph
        scale, shift = self.corrections()
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
