"""Responses by forward passes alone, for models whose kernels or weights have no backward pass.

What a layer's older output changes in the network's output is measured with the true change of the layer put in: one
evaluation per layer (or group of layers) and evaluation, everything else computed. How such a change goes on to the
image is a linear map that all layers share. It is applied to few directions: at each evaluation the changes so far
are written in a basis of `num_probes` states, the best one for all of them (a singular value decomposition), and only
the basis is carried on, by a finite difference along each of its states. The solver's part is exact: its steps are
linear in the network's outputs.

The change against an output `a` evaluations older is the sum of the changes from each evaluation to the next in
between, each divided by how far its output moves the state (see `Grid`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.backbones.layer_cache import LayerOutput
from l2c.calibration.grid import Grid, output_map
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

    E (1 + L / group + num_probes) evaluations per trajectory.

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
    groups = [range(i, min(i + group, layers)) for i in range(0, layers, group)]
    parts = []
    total = -(-len(noise) // batch_size) * sampler.solver.num_evaluations
    with tqdm(total=total, desc="responses", unit="evaluation") as bar:
        for _, chosen, part in in_batches(labels, noise, batch_size):
            parts.append(_ForwardChanges(sampler, chosen, groups, num_probes, bar).of(part))  # (n, E, G, K)
    found = torch.cat(parts).movedim(0, 2).flatten(2)  # (E, G, M)
    found = found / (noise[0].numel() * len(noise)) ** 0.5
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


class _ForwardChanges:
    """What the older output of each group of layers changes in the images of one batch.

    Args:
        sampler: uncached.
        labels: (n,) labels; None for a backbone without.
        groups: layers that are measured together.
        rank: states of the basis, K.
        bar: a bar over evaluations.

    """

    def __init__(
        self, sampler: Sampler, labels: Tensor | None, groups: Sequence[range], rank: int, bar: tqdm
    ) -> None:
        self._backbone, self._solver = sampler.backbone, sampler.solver
        device = next(sampler.backbone.parameters()).device
        labels = None if labels is None else labels.to(device)
        self._network = GuidedBackbone(sampler.backbone, labels, sampler.guidance)
        self._map = output_map(sampler.solver).float().to(device)  # (E + 1, E)
        self._groups, self._rank, self._bar, self._device = groups, rank, bar, device
        self._before: list[Tensor] = []  # the layers' outputs one evaluation ago

    def of(self, noise: Tensor) -> Tensor:
        """Return the changes of the images of noise (n, C, H, W) in an orthonormal basis each, (n, E, G, K)."""
        n, size = len(noise), noise[0].numel()
        self._entries = torch.zeros(n, 0, 0, dtype=torch.float64, device=self._device)  # (n, entries, basis)
        self._basis = torch.zeros(n, 0, 0, size, device=self._device)  # outputs (n, evaluations so far, basis, P)
        self._solver.sample(self._evaluate, noise.to(self._device))
        count, groups = self._solver.num_evaluations, len(self._groups)
        kept = self._entries.shape[2]
        found = torch.zeros(n, count, groups, self._rank)
        found[:, 1:, :, :kept] = self._entries.view(n, count - 1, groups, kept).cpu()
        return found

    def _evaluate(self, x: Tensor, t: float) -> Tensor:
        e = self._basis.shape[1]
        output, layers = self._network.full(x, t)
        plain = output[:, : x.shape[1]].flatten(1)  # without variance
        carried = self._carried(x, t, plain)  # (n, basis, P)
        self._basis = torch.cat([self._basis, carried[:, None]], dim=1)
        if e:
            self._add(self._local(x, t, plain))
        self._before = layers
        if e:
            self._reduce(e)
        self._bar.update()
        return output

    def _output(self, x: Tensor, t: float, reused: Collection[int] = ()) -> Tensor:
        """Return the guided output (n, P) at x, some layers reused as they were one evaluation ago."""
        row = [layer not in reused for layer in range(self._backbone.num_layers)]
        cache: list[LayerOutput] = [None if fresh else self._before[i] for i, fresh in enumerate(row)]
        inputs = (*self._network.inputs(x, t), self._network.y)
        output, _ = self._backbone.forward_cached(*inputs, row, cache, (False,) * len(row))
        return self._network.merge(output)[:, : x.shape[1]].flatten(1)

    def _carried(self, x: Tensor, t: float, plain: Tensor) -> Tensor:
        """Return what the basis, moved to the states of this evaluation, changes in its output, (n, basis, P)."""
        e = self._basis.shape[1]
        states = torch.einsum("k,nkbp->nbp", self._map[e, :e], self._basis)
        step = STEP.get(self._network.dtype, COARSE_STEP) * x.flatten(1).norm(dim=1)  # (n,)
        scale = step[:, None] / states.norm(dim=2).clamp_min(1e-30)  # (n, basis)
        found = torch.zeros_like(states)
        for b in range(states.shape[1]):
            moved = x + (scale[:, b, None] * states[:, b]).view_as(x)
            found[:, b] = (self._output(moved, t) - plain) / scale[:, b, None]
        return found

    def _local(self, x: Tensor, t: float, plain: Tensor) -> Tensor:
        """Return what the last evaluation's outputs of each group change in this one's output, (n, G, P)."""
        return torch.stack([self._output(x, t, members) - plain for members in self._groups], dim=1)

    def _add(self, local: Tensor) -> None:
        """Take new entries (n, G, P) into the basis, each as a direction of its own."""
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
        """Replace the basis by the `rank` combinations that hold most of all entries' changes.

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
        changes = (self._entries * sizes[:, None]) @ (
            vectors * root[:, None]
        )  # of all entries, in an orthonormal basis
        _, axes = torch.linalg.eigh(changes.mT @ changes)
        axes = axes[:, :, -self._rank :]
        back = torch.where(alive, 1 / root.clamp_min(1e-30), 0)
        mix = axes.mT @ (vectors * back[:, None]).mT / sizes[:, None]  # (n, rank, basis): new states of old ones
        self._entries = changes @ axes
        self._basis = torch.einsum("nrb,nkbp->nkrp", mix.float(), self._basis)
