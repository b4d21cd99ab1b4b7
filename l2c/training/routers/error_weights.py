"""HarmoniCa's weights (arXiv 2410.01723): the change of the final image by caching at each evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.diffusion import Guidance, Solver
from l2c.graph.cache_graph import CacheGraph
from l2c.io.seeds import Stream, draw_normal
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.binding import binding_of
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.image_error import squared_errors

VARIANTS = ("sensitivity", "disabled_once", "cumulative")


class ErrorWeights:
    """Measure the weights of a set of rows by whole trajectories, without gradients.

    `disabled_once` (the publication): squared difference of the final image when caching is disabled at that
    evaluation only. `cumulative` (its code): squared difference that caching at this evaluation adds when all
    earlier ones cache already and no later one does. Both are scaled to mean 1 over the evaluations that reuse,
    so that the penalty keeps its meaning while the rows change; evaluations that reuse nothing yet weigh 1.
    `sensitivity` (ours): the squared difference of `disabled_once` over that of the evaluation's output, so that
    weight times error is what the image changes by; where nothing is reused yet, of reusing everything there. Scaled
    to mean 1 over all evaluations but the first.

    Args:
        backbone: the frozen network.
        solver: the solver of the trajectory.
        guidance: its guidance.
        variant: `sensitivity`, `disabled_once` or `cumulative`.
        num_images: images per trajectory.
        seed: seed of their noise.

    """

    def __init__(
        self,
        backbone: Backbone,
        solver: Solver,
        guidance: Guidance,
        *,
        variant: str = "disabled_once",
        num_images: int = 8,
        seed: int = 0,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"router.error_weights must be one of {', '.join(VARIANTS)}, got {variant!r}")
        self.backbone = backbone
        self.solver = solver
        self.guidance = guidance
        self.variant = variant
        self.num_images = num_images
        self.seed = seed

    def __call__(self, rows: Sequence[Sequence[bool]]) -> list[float]:
        """Return the weight of each evaluation, in order."""
        if self.variant == "sensitivity":
            return self._sensitivities(rows)
        reusing = [e for e, row in enumerate(rows) if not all(row)]
        full = (True,) * self.backbone.num_layers
        moved: dict[int, float] = {}
        if self.variant == "disabled_once":
            cached = self._images(rows)
            for e in reusing:
                without = self._images(_at(rows, e, full))
                moved[e] = float(squared_errors(cached, without).mean())
        else:
            before = self._images([full] * len(rows))
            for e in reusing:
                image = self._images([row if i <= e else full for i, row in enumerate(rows)])
                moved[e] = float(squared_errors(image, before).mean())
                before = image
        mean = sum(moved.values()) / len(moved) if moved else 0.0
        return [moved[e] / mean if mean > 0 and e in moved else 1.0 for e in range(len(rows))]

    def _sensitivities(self, rows: Sequence[Sequence[bool]]) -> list[float]:
        """Return the change of the image per change of each evaluation's output."""
        full, none = (True,) * self.backbone.num_layers, (False,) * self.backbone.num_layers
        outputs: list[Tensor] = []
        image, found = self._images(rows, outputs), [0.0]
        for e in range(1, len(rows)):
            others: list[Tensor] = []
            other = self._images(_at(rows, e, none if all(rows[e]) else full), others)
            change = float(squared_errors(others[e], outputs[e]).mean())
            found.append(float(squared_errors(other, image).mean()) / change if change > 0 else 0.0)
        mean = sum(found) / (len(found) - 1)
        return [1.0, *(value / mean for value in found[1:])] if mean > 0 else [1.0] * len(rows)

    @torch.no_grad()
    def _images(self, rows: Sequence[Sequence[bool]], outputs: list[Tensor] | None = None) -> Tensor:
        """Return final images (N, C, H, W) of a plan's trajectory; the same noise every time.

        The outputs of all evaluations are appended to `outputs`.
        """
        device = next(self.backbone.parameters()).device
        binding = binding_of(self.backbone, self.solver, weights_bound=False)
        graph = CacheGraph.blank(binding, rows=tuple(map(tuple, rows)))
        labels = labels_in_turn(self.backbone.num_labels, self.num_images)
        shape = (self.num_images, *self.backbone.input_shape)
        noise = draw_normal(shape, "start of a trajectory for error weights", self.seed).to(device)
        source = Stream("solver noise of a trajectory for error weights", self.seed)
        denoiser = Denoiser(self.backbone, None if labels is None else labels.to(device), self.guidance, graph)

        def evaluate(x: Tensor, t: float) -> Tensor:
            output = denoiser(x, t)
            if outputs is not None:
                outputs.append(output)
            return output

        return self.solver.sample(evaluate, noise, generator=source)


def _at(rows: Sequence[Sequence[bool]], evaluation: int, row: Sequence[bool]) -> list[Sequence[bool]]:
    """Return rows with another one at an evaluation."""
    return [row if e == evaluation else of for e, of in enumerate(rows)]
