"""Responses by forward passes alone, for models whose kernels or weights have no backward pass.

What a layer's older output changes in the network's output is measured with the true change of the layer put in: one
evaluation per layer (or group of layers) and evaluation, everything else computed. How such a change goes on to the
image is a linear map that all layers share. It is applied to few directions: at each evaluation the changes so far
are written in a basis of `num_probes` states, the best one for all of them (a singular value decomposition), and only
the basis is carried on, by a finite difference along each of its states. The solver's part is exact: its steps are
linear in the network's outputs.

The change against a layer's output `a` evaluations older is the sum of the changes from each evaluation to the next
in between, each divided by how far its output moves the state (see `Grid`). Where the network's output is the one
layer, what an output of any age changes in it is known without an evaluation, and each age is carried on as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.calibration.grid import Grid, output_map
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.sampling.batches import in_batches
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import Sampler

STEP = {torch.float32: 1e-3, torch.float64: 1e-4}  # of the state's norm, along which a difference is taken
COARSE_STEP = 3e-2  # in 16 bits
SINGULAR = 1e-8  # of the largest eigenvalue: directions of less are taken to be none


@torch.no_grad()
def measure_forward(
    sampler: Sampler,
    labels: Tensor | None,
    noise: Tensor,
    *,
    num_probes: int = 8,
    max_age: int = 8,
    max_ahead: int = 3,
    batch_size: int = 8,
    group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return responses to older outputs (E, L, max_age, M), and to younger ones, as `measure_both_ways` does.

    E (1 + L / group + num_probes) evaluations per trajectory, of the whole output E (1 + num_probes).

    Args:
        sampler: uncached; brings solver, guidance and backbone.
        labels: (N,) labels; None for a backbone without.
        noise: (N, C, H, W), one trajectory each.
        num_probes: directions of image space that are kept per trajectory; M = N num_probes.
        max_age: the oldest output considered, in evaluations.
        max_ahead: the youngest output considered, in evaluations.
        batch_size: trajectories at a time.
        group: neighbouring layers that are measured together; each is taken to have an equal part.

    Raises:
        ValueError: if the solver adds noise of its own.

    """
    grid = Grid.of(sampler.solver)
    layers = sampler.backbone.num_layers
    whole = sampler.backbone.layer_names == (WHOLE_OUTPUT,)
    groups = [range(i, min(i + group, layers)) for i in range(0, layers, group)]
    parts = []
    total = -(-len(noise) // batch_size) * sampler.solver.num_evaluations
    with tqdm(total=total, desc="responses", unit="evaluation") as bar:
        for _, chosen, part in in_batches(labels, noise, batch_size):
            changes: _ForwardChanges = (
                _OutputChanges(sampler, chosen, num_probes, bar, max_age, max_ahead)
                if whole
                else _LayerChanges(sampler, chosen, num_probes, bar, groups)
            )
            parts.append(changes.of(part))  # (n, E, S, K)
    found = torch.cat(parts).movedim(0, 2).flatten(2)  # (E, S, M)
    found = found / (noise[0].numel() * len(noise)) ** 0.5
    if whole:
        return found[:, None, :max_age].contiguous(), found[:, None, max_age:].contiguous()
    sizes = torch.tensor([len(members) for members in groups])
    found = (found / sizes[:, None]).repeat_interleave(sizes, dim=1)
    return _of_all_ages(found, grid.coefficients, max_age, max_ahead)


def _of_all_ages(found: Tensor, coefficients: Sequence[float], max_age: int, max_ahead: int) -> tuple[Tensor, Tensor]:
    """Return responses to older and younger outputs from those to the output one evaluation older, (E, L, M)."""
    count, layers, size = found.shape
    factor = torch.tensor(coefficients)[:, None, None]
    per_unit = torch.cumsum(found / factor, dim=0)  # sums of neighbours are differences of these
    back, ahead = torch.zeros(count, layers, max_age, size), torch.zeros(count, layers, max_ahead, size)
    for e in range(count):
        for a in range(1, min(e, max_age) + 1):
            back[e, :, a - 1] = factor[e] * (per_unit[e] - per_unit[e - a])
        for b in range(1, min(count - 1 - e, max_ahead) + 1):
            ahead[e, :, b - 1] = factor[e] * (per_unit[e] - per_unit[e + b])
    return back, ahead


class _ForwardChanges(ABC):
    """What older outputs change in the images of one batch. S slots of an evaluation are kinds of such changes.

    Args:
        sampler: uncached.
        labels: (n,) labels; None for a backbone without.
        rank: states of the basis, K.
        bar: a bar over evaluations.

    """

    num_slots: int
    alike: ClassVar[bool] = False  # whether the basis is to hold equal shares of all changes, not the largest ones

    def __init__(self, sampler: Sampler, labels: Tensor | None, rank: int, bar: tqdm) -> None:
        self._backbone, self._solver = sampler.backbone, sampler.solver
        device = next(sampler.backbone.parameters()).device
        labels = None if labels is None else labels.to(device)
        self._network = GuidedBackbone(sampler.backbone, labels, sampler.guidance)
        self._map = output_map(sampler.solver).float().to(device)  # (E + 1, E)
        self._rank, self._bar, self._device = rank, bar, device
        self._inputs: list[tuple[Tensor, float]] = []
        self._outputs: list[Tensor] = []  # (n, P), without variance

    @abstractmethod
    def slots(self, e: int) -> list[int]:
        """Return the slots that an evaluation has."""

    @abstractmethod
    def changes(self, e: int) -> Tensor:
        """Return what each of the slots of an evaluation changes in the network's output there, (n, slots, P)."""

    def of(self, noise: Tensor) -> Tensor:
        """Return the changes of the images of noise (n, C, H, W) in an orthonormal basis each, (n, E, S, K)."""
        self._solver.sample(self._evaluate, noise.to(self._device))
        n, size, count = len(noise), noise[0].numel(), len(self._outputs)
        self._entries = torch.zeros(n, 0, 0, dtype=torch.float64, device=self._device)  # (n, entries, basis)
        self._basis = torch.zeros(n, 0, 0, size, device=self._device)  # outputs (n, evaluations so far, basis, P)
        places: list[tuple[int, int]] = []
        for e in range(count):
            self._basis = torch.cat([self._basis, self._carried(e)[:, None]], dim=1)
            if slots := self.slots(e):
                places += [(e, slot) for slot in slots]
                self._add(self.changes(e))
                self._reduce(e)
            self._bar.update()
        found = torch.zeros(n, count, self.num_slots, self._rank)
        evaluations, kinds = zip(*places, strict=True)
        found[:, evaluations, kinds, : self._entries.shape[2]] = self._entries.float().cpu()
        return found

    def _evaluate(self, x: Tensor, t: float) -> Tensor:
        output, layers = self._network.full(x, t)
        self._inputs.append((x, t))
        self._outputs.append(output[:, : x.shape[1]].flatten(1))
        self._see(layers)
        return output

    def _see(self, layers: Sequence[Tensor]) -> None:  # noqa: B027  # not all have something to see
        """Look at the layers' outputs of the evaluation that was made last."""

    def _output(self, x: Tensor, t: float, instead: Mapping[int, Tensor] | None = None) -> Tensor:
        """Return the guided output (n, P) at x, with given outputs of some layers instead of their own."""
        instead = instead or {}
        count = self._backbone.num_layers
        row, cache = [layer not in instead for layer in range(count)], [instead.get(layer) for layer in range(count)]
        inputs = (*self._network.inputs(x, t), self._network.y)
        output, _ = self._backbone.forward_cached(*inputs, row, cache, (False,) * count)
        return self._network.merge(output, t)[:, : x.shape[1]].flatten(1)

    def _carried(self, e: int) -> Tensor:
        """Return what the basis, moved to the states of an evaluation, changes in its output, (n, basis, P)."""
        x, t = self._inputs[e]
        plain = self._outputs[e]
        states = torch.einsum("k,nkbp->nbp", self._map[e, :e], self._basis)
        step = STEP.get(self._network.dtype, COARSE_STEP) * x.flatten(1).norm(dim=1)  # (n,)
        scale = step[:, None] / states.norm(dim=2).clamp_min(1e-30)  # (n, basis)
        found = torch.zeros_like(states)
        for b in range(states.shape[1]):
            moved = x + (scale[:, b, None] * states[:, b]).view_as(x)
            found[:, b] = (self._output(moved, t) - plain) / scale[:, b, None]
        return found

    def _add(self, local: Tensor) -> None:
        """Take what new entries change in this evaluation's output (n, G, P) into the basis, a direction for each."""
        n, groups, size = local.shape
        new = torch.zeros(n, self._basis.shape[1], groups, size, device=local.device)
        new[:, -1] = local
        self._basis = torch.cat([self._basis, new], dim=2)
        old, kept = self._entries.shape[1:]
        entries = self._entries.new_zeros(n, old + groups, kept + groups)
        entries[:, :old, :kept] = self._entries
        entries[:, old:, kept:] = torch.eye(groups).to(entries)
        self._entries = entries

    def _reduce(self, e: int) -> None:
        """Replace the basis by the `rank` combinations that hold most of all entries' changes, see `alike`.

        A change counts by what it moves in the next state and, the network's later outputs being what they are, in
        the image; after the last evaluation by the image alone, in whose norm the basis is then orthonormal.
        """
        moves = self._map[e + 1 :, : e + 1]  # to all later states and the image
        if len(moves) > 1:
            moves = moves[[0, -1]] / moves[[0, -1]].norm(dim=1, keepdim=True)
        moved = torch.einsum("mk,nkbp->nbmp", moves, self._basis).flatten(2).double()  # (n, basis, P or 2 P)
        sizes = moved.norm(dim=2).clamp_min(1e-30)  # directions count alike, however small
        moved = moved / sizes[:, :, None]
        values, vectors = torch.linalg.eigh(moved @ moved.mT)
        alive = values > SINGULAR * values[:, -1:]
        root = torch.where(alive, values, 0).sqrt()
        changes = (self._entries * sizes[:, None]) @ (vectors * root[:, None])  # in an orthonormal basis
        weighed = changes / changes.norm(dim=2, keepdim=True).clamp_min(1e-30) if self.alike else changes
        _, axes = torch.linalg.eigh(weighed.mT @ weighed)
        axes = axes[:, :, -self._rank :]
        back = torch.where(alive, 1 / root.clamp_min(1e-30), 0)
        mix = axes.mT @ (vectors * back[:, None]).mT / sizes[:, None]  # (n, rank, basis): new states of old ones
        self._entries = changes @ axes
        self._basis = torch.einsum("nrb,nkbp->nkrp", mix.float(), self._basis)


class _LayerChanges(_ForwardChanges):
    """A slot for each of the groups of layers: their outputs of the evaluation before."""

    def __init__(
        self, sampler: Sampler, labels: Tensor | None, rank: int, bar: tqdm, groups: Sequence[range]
    ) -> None:
        super().__init__(sampler, labels, rank, bar)
        self._groups, self.num_slots = groups, len(groups)
        self._before: Sequence[Tensor] = ()  # the layers' outputs one evaluation ago
        self._changes: list[Tensor] = []

    def slots(self, e: int) -> list[int]:
        """Return all groups; none at the first evaluation."""
        return list(range(self.num_slots)) if e else []

    def changes(self, e: int) -> Tensor:
        """Return what was measured along the trajectory."""
        return self._changes[e - 1]

    def _see(self, layers: Sequence[Tensor]) -> None:
        if self._before:
            at, plain = self._inputs[-1], self._outputs[-1]
            old = [{layer: self._before[layer] for layer in members} for members in self._groups]
            self._changes.append(torch.stack([self._output(*at, instead) - plain for instead in old], dim=1))
        self._before = layers


class _OutputChanges(_ForwardChanges):
    """A slot for each age of the network's output: 1..`max_age` evaluations older, then 1..`max_ahead` younger.

    Weights are fitted to ages of one output, so that what counts is what the fit leaves: a small part even of
    the smallest change.
    """

    alike = True

    def __init__(
        self, sampler: Sampler, labels: Tensor | None, rank: int, bar: tqdm, max_age: int, max_ahead: int
    ) -> None:
        super().__init__(sampler, labels, rank, bar)
        self._ages = (*range(-1, -1 - max_age, -1), *range(1, 1 + max_ahead))
        self.num_slots = len(self._ages)

    def slots(self, e: int) -> list[int]:
        """Return the ages that there are."""
        return [slot for slot, age in enumerate(self._ages) if 0 <= e + age < len(self._outputs)]

    def changes(self, e: int) -> Tensor:
        """Return how far the outputs of these ages are from the evaluation's own."""
        others = torch.stack([self._outputs[e + self._ages[slot]] for slot in self.slots(e)], dim=1)
        return others - self._outputs[e][:, None]
