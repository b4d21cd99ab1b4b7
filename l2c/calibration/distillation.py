"""Training of slopes, scales and shifts of reused layers, by distillation along the cached trajectory.

Block Caching (CVPR 2024, section 3.4) trains scales and shifts as a linear map of the timestep embedding, at one
evaluation at a time. Here slopes are trained too, and the whole trajectory may be differentiated, so that the final
image decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from l2c.backbones.dit import timestep_embedding
from l2c.graph.cache_graph import CacheGraph
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.correction import has_slopes, layer_widths, reused_entries
from l2c.sampling.gradients import check_weights, differentiable
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.unrolled import image_loss, start_slopes, unroll, with_slopes

LOSSES = ("image", "output")
EMBEDDING_SIZE = 256

Batch = Sequence[Tensor | None]  # noise (N, C, H, W), labels (N,) or None, and the teacher's images if drawn already


@dataclass(frozen=True)
class Training:
    """Settings of the training of slopes, and what it is trained on.

    Attributes:
        teacher: uncached, its images are the aim.
        steps: training steps, each through the whole cached trajectory of a batch; 0 = none.
        batch_size: trajectories per step.
        learning_rate: learning rate of the slopes.
        seed: seed of the noises.
        first: number of the first noise.
        drawn: images of the teacher that are drawn at a time.

    """

    teacher: Sampler
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    first: int
    drawn: int

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """Return the batches of all steps with the teacher's images, drawn once for all that is trained."""
        backbone, count = self.teacher.backbone, self.steps * self.batch_size
        noise = seeded_noise(backbone.input_shape, self.seed, count, first=self.first)
        labels = labels_in_turn(backbone.num_labels, count, first=self.first)
        with tqdm(total=count, desc="images to train on", unit="image") as bar:
            images = sample_in_batches(self.teacher, labels, noise, batch_size=self.drawn, advance=bar)
        split = [None if one is None else one.split(self.batch_size) for one in (noise, labels, images)]
        return tuple(tuple(one and one[step] for one in split) for step in range(self.steps))


class Distillation(nn.Module):
    """Slopes, scales and shifts of a graph, and the loss that trains them towards a teacher's images.

    Args:
        sampler: uncached; brings backbone, solver and guidance of the graph.
        graph: the graph; its rows stay as they are.
        teacher: uncached, gives the images of the loss `image`; None = `sampler`.
        loss: `image`: error of the final image against the teacher's from the same noise, through the whole
            trajectory. `output`: error of each evaluation's output against a full pass at the same state, the
            student following its own trajectory (the publication).
        slopes: train the slope of each entry.
        scale_shift: train scales and shifts.
        slope_rate: peak learning rate of the slopes.
        scale_shift_rate: about the largest change of a scale or a shift in one step.

    Attributes:
        backbone: the frozen network, a submodule so that it moves with the trained part.
        slopes: (R,) or (R, K - 1), see `start_slopes`.
        maps: (embedding size, scale and shift, channels of all layers side by side); None without scale_shift.

    Raises:
        ValueError: if the loss is unknown, nothing is to be trained, or the solver passes no gradient on.

    """

    def __init__(
        self,
        sampler: Sampler,
        graph: CacheGraph,
        *,
        teacher: Sampler | None = None,
        loss: str = "image",
        slopes: bool = True,
        scale_shift: bool = True,
        slope_rate: float = 0.02,
        scale_shift_rate: float = 0.003,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not (slopes or scale_shift):
            raise ValueError("slopes=false and scale_shift=false leave nothing to train; set one of them to true")
        self.sampler, self.graph, self.teacher, self.kind = sampler, graph, teacher or sampler, loss
        self.backbone = sampler.backbone
        self.scale_shift = scale_shift
        self.rates = (slope_rate if slopes else 0.0, scale_shift_rate if scale_shift else 0.0)
        self.entries = reused_entries(graph)
        check_weights(self.backbone, self.backbone.conventions.name)
        if not self.entries:
            raise ValueError("the graph reuses nothing, so there is nothing to correct; take one that does")
        if not scale_shift and not has_slopes(graph):
            raise ValueError(
                "no reused layer has two computed outputs before it, so there are no slopes to train; take a graph "
                "that reuses later, or set scale_shift=true"
            )
        if loss == "image" and not differentiable(sampler.solver, self.backbone.input_shape):
            raise ValueError(
                f"loss=image needs a solver whose steps can be differentiated, but those of {graph.solver} cannot; "
                "take loss=output"
            )
        device = next(self.backbone.parameters()).device
        self.slopes = nn.Parameter(start_slopes(graph).to(device), requires_grad=slopes)
        self.maps: nn.Parameter | None = None
        if scale_shift:
            self.widths = layer_widths(self.backbone)
            self.maps = nn.Parameter(torch.zeros(EMBEDDING_SIZE, 2, sum(self.widths), device=device))
        # Some pipelines count time from 1 to 0, where the frequencies of the embedding tell nothing apart.
        times = torch.tensor(graph.timesteps) * (1000 if graph.timesteps[0] <= 1 else 1)
        embedding = timestep_embedding(times, EMBEDDING_SIZE).to(device)  # (E, embedding size)
        self.register_buffer("embedding", embedding / embedding.abs().sum(dim=1, keepdim=True), persistent=False)

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters, by their names in the state dict."""
        return {"slopes": self.slopes.detach(), **({} if self.maps is None else {"maps": self.maps.detach()})}

    def corrections(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return scale and shift of all reused entries, R rows (D,) each; layers may differ in D."""
        if self.maps is None:
            return None
        assert isinstance(self.embedding, Tensor)
        change = torch.einsum("ek,kcd->ecd", self.embedding, self.maps).split(self.widths, dim=2)  # by layer
        scale = [1 + change[layer][e, 0] for e, layer in self.entries]
        return scale, [change[layer][e, 1] for e, layer in self.entries]

    def walk(self, noise: Tensor, y: Tensor | None, *, teach: bool = False) -> tuple[Tensor, Tensor]:
        """Follow the trajectory with the current slopes, scales and shifts; see `unroll`."""
        return unroll(self.sampler, self.graph, noise, y, self.slopes, self.corrections(), teach=teach)

    def loss(self, noise: Tensor, y: Tensor | None, target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the loss of noise (N, C, H, W) and labels (N,), and the mean squared error of the images.

        The second one is None for the loss `output`, which needs no images of the teacher. The loss `image` draws
        them unless they are given as `target`.
        """
        if self.kind == "output":
            return self.walk(noise, y, teach=True)[1], None
        images, _ = self.walk(noise, y)
        return image_loss(images, self.teacher.sample(y, noise=noise) if target is None else target)

    def optimizer(self, num_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Return Adam and its schedule, a cosine down to 0 after `num_steps` steps."""
        groups = [
            {"params": [parameter], "lr": rate}
            for parameter, rate in zip((self.slopes, self.maps), self.rates, strict=True)
            if rate
        ]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        return adam, LambdaLR(adam, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))))

    @torch.no_grad()
    def corrected(self) -> tuple[CacheGraph, list[Tensor] | None, list[Tensor] | None]:
        """Return the graph with the trained slopes, and scale and shift (R rows) where they were trained."""
        graph = with_slopes(self.graph, self.slopes) if self.rates[0] else self.graph
        return graph, *(self.corrections() or (None, None))


def distil(distillation: Distillation, batches: Iterable[Batch], num_steps: int) -> None:
    """Train on batches, one step each, in this process and without a record.

    Args:
        distillation: the parameters, trained in place.
        batches: noise (N, C, H, W), labels (N,) or None, and the teacher's images if they are drawn already.
        num_steps: number of batches; the learning rate falls to 0 over them.

    """
    optimizer, schedule = distillation.optimizer(num_steps)
    device = distillation.slopes.device
    for batch in batches:
        noise, *others = (None if one is None else one.to(device) for one in batch)
        assert noise is not None
        with torch.enable_grad():
            loss, _ = distillation.loss(noise, *others)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
