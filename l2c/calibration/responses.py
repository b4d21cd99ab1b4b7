"""Response of the final image to replacing a layer's output by an older one, measured by backward passes.

To first order, replacing the output f_e of a layer at evaluation e by f_e + d changes the image by J_e d. One
backward pass from a random direction q of image space gives q . J_e for all entries (evaluation, layer) at once,
so that q . J_e (f_{e-a} - f_e) costs an inner product for every age a. Because J_e is linear, the effect of `linear`
reuse is a combination of two ages: neither it nor spans need a second measurement.

The backward pass goes evaluation by evaluation, from the last to the first, each of which is computed again: memory
holds the activations of one evaluation, the states of the trajectory and the outputs of all layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.backbones.backbone import Backbone
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.io.memory import out_of_memory
from l2c.io.seeds import ImageNoise
from l2c.sampling.batches import in_batches
from l2c.sampling.gradients import check_differentiable, check_weights
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.sampler import Sampler


def measure_responses(
    sampler: Sampler,
    labels: Tensor | None,
    noise: Tensor,
    *,
    num_probes: int = 8,
    max_age: int = 8,
    batch_size: int = 8,
    seed: int = 0,
) -> Tensor:
    """Return responses (E, L, max_age, N * num_probes); entry [e, l, a - 1] belongs to an output a evaluations old.

    Scaled such that for a sum S of responses, sum(S^2) estimates the mean squared error per pixel of the image:
    of P pixels, `num_probes` orthonormal directions per image are drawn.

    Args:
        sampler: uncached; brings solver, guidance and backbone.
        labels: (N,) labels; None for a backbone without.
        noise: (N, C, H, W), one trajectory each.
        num_probes: backward passes per batch.
        max_age: the oldest output considered, in evaluations.
        batch_size: trajectories differentiated at a time; memory grows with it.
        seed: seed of the directions, which belong to images: the batch size does not change them.

    Raises:
        ValueError: if the solver adds noise of its own, or passes no gradient on.

    """
    options = {"num_probes": num_probes, "max_age": max_age, "batch_size": batch_size, "seed": seed}
    return measure_both_ways(sampler, labels, noise, max_ahead=0, **options)["responses"]


def measure_both_ways(
    sampler: Sampler,
    labels: Tensor | None,
    noise: Tensor,
    *,
    num_probes: int = 8,
    max_age: int = 8,
    max_ahead: int = 3,
    between: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    first: int = 0,
) -> dict[str, Tensor]:
    """Return responses to older outputs, see `measure_responses`, and to younger ones, (E, L, max_ahead, M).

    The latter, `responses_ahead`, serve to carry responses to other times, see `l2c.calibration.other_times`.
    `output_responses` and `output_responses_ahead`, L = 1, are those to the network's whole guided output. They cost
    nothing more, and are left out where that is the backbone's one layer anyway. With `between`, the names of the
    whole output's with `_between` are those to outputs between evaluations, the nearest first, (E, 1, max_age *
    between, M) and (E, 1, max_ahead * between, M); they cost `between` forward passes an evaluation. `first` is the
    number of the first trajectory among those of the seed, by which directions are drawn.
    """
    check_gradients(sampler)
    parts = []
    total = -(-len(noise) // batch_size) * num_probes * sampler.solver.num_evaluations
    with tqdm(total=total, desc="responses", unit="pass") as bar:
        for start, chosen, part in in_batches(labels, noise, batch_size):
            count, size = len(part), noise[0].numel()
            directions = ImageNoise("directions of responses", seed, range(first + start, first + start + count))
            draws = directions((count, size, num_probes))
            probes = torch.linalg.qr(draws).Q.movedim(2, 0)  # (K, n, P), orthonormal per image
            trajectory = _Trajectory(sampler, chosen, part)
            outputs = trajectory.outputs_between(between)
            parts.append(_responses(trajectory, outputs, probes, (max_age, max_ahead), bar))
    responses, to_between = (torch.cat(kind, dim=3).flatten(3) for kind in zip(*parts, strict=True))
    responses /= responses.shape[3] ** 0.5
    to_between /= responses.shape[3] ** 0.5
    found = both_ways("responses", responses[:, :-1], max_age)
    prefix = "" if sampler.backbone.layer_names == (WHOLE_OUTPUT,) else "output_"
    found |= both_ways(f"{prefix}responses", responses[:, -1:], max_age)
    if to_between.shape[2]:
        found |= both_ways(f"{prefix}responses", to_between, max_age * between, "_between")
    return found


def both_ways(name: str, responses: Tensor, max_age: int, end: str = "") -> dict[str, Tensor]:
    """Return responses (E, L, A + B, M) by name, those to older and those to younger outputs."""
    older, younger = responses[:, :, :max_age], responses[:, :, max_age:]
    return {f"{name}{end}": older.contiguous(), f"{name}_ahead{end}": younger.contiguous()}


class _Trajectory:
    """One batch's trajectory: its states as functions of the network's outputs, and the outputs of all layers.

    The guided output of the network counts as one more layer, the last.

    Args:
        sampler: uncached.
        labels: (n,) labels; None for a backbone without.
        noise: (n, C, H, W).

    Attributes:
        image: (n, C, H, W).
        layers: outputs [evaluation][layer].

    """

    def __init__(self, sampler: Sampler, labels: Tensor | None, noise: Tensor) -> None:
        self._backbone, self._solver = sampler.backbone, sampler.solver
        device = next(sampler.backbone.parameters()).device
        labels = None if labels is None else labels.to(device)
        self._network = GuidedBackbone(sampler.backbone, labels, sampler.guidance)
        self._requests: list[tuple[Tensor, float]] = []
        self._outputs: list[Tensor] = []
        self.layers: list[list[Tensor]] = []
        with torch.enable_grad():  # through the solver alone: a few products of states
            self.image = sampler.solver.sample(self._evaluate, noise.to(device).requires_grad_(True))

    def __len__(self) -> int:
        return len(self._outputs)

    def _evaluate(self, x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            output, layers = self._network.full(x, t)
        self._requests.append((x, t))
        self._outputs.append(output.detach().requires_grad_(True))  # which may be a layer's own tensor
        self.layers.append([*layers, output])
        return self._outputs[-1]

    def outputs_between(self, number: int) -> list[Tensor]:
        """Return the whole outputs at a number of times between each two evaluations, in order.

        None at all where the solver does not know the states there.
        """
        states = [x.detach() for x, _ in self._requests]
        found = []
        for e, share in itertools.product(range(len(self) - 1), range(1, number + 1)):
            place = self._solver.between(e, share / (number + 1), states[e], states[e + 1])
            if place is None:
                return []
            with torch.no_grad():
                found.append(self._network.full(*place)[0])
        return found

    def gradients(self, probes: Tensor) -> Iterator[tuple[int, int, Sequence[Tensor]]]:
        """Yield (evaluation, probe, gradients by its layers' outputs), from the last evaluation to the first.

        Args:
            probes: (K, n, P) directions of image space, by whose inner product with the image is differentiated.

        """
        at_image = probes.view(len(probes), *self.image.shape)
        at_states: list[Tensor | None] = [None] * len(self)  # of each evaluation, (K, n, C, H, W)
        for e in reversed(range(len(self))):
            by_output = self._by_output(e, at_image, at_states)
            with torch.enable_grad(), _gradients_refused(self._backbone):
                x = self._requests[e][0].detach().requires_grad_(True)
                output, layers = self._network.full(x, self._requests[e][1])
            at_state = torch.zeros_like(at_image)
            for k, gradient in enumerate(by_output):
                # Some layers may be made that nothing reads: the last block's text stream.
                with _gradients_refused(self._backbone):
                    at_x, *by_layer = torch.autograd.grad(
                        output, [x, *layers], gradient, retain_graph=k < len(by_output) - 1, allow_unused=True
                    )
                    if at_x is None:  # outputs that do not follow x begin gradients themselves
                        raise RuntimeError("its output does not follow its input")
                at_state[k] = at_x
                found = zip(by_layer, layers, strict=True)
                yield e, k, [*(torch.zeros_like(own) if at is None else at for at, own in found), gradient]
            at_states[e] = at_state

    def _by_output(self, e: int, at_image: Tensor, at_states: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the gradients (n, C, H, W) by the network's output at an evaluation, one per probe."""
        later = [(self.image, at_image)]
        later += [(self._requests[i][0], at) for i, at in enumerate(at_states) if at is not None]
        found = []
        for k in range(len(at_image)):
            (gradient,) = torch.autograd.grad(
                [state for state, _ in later],
                self._outputs[e],
                [at[k].to(state) for state, at in later],
                retain_graph=True,
                materialize_grads=True,
            )
            found.append(gradient)
        return found


def check_gradients(sampler: Sampler) -> None:
    """Refuse a sampler through which no gradient passes, or whose images are not those of their noises alone.

    Raises:
        ValueError: if the solver adds noise of its own, or solver or weights pass no gradient on.

    """
    sampler.solver.check_deterministic("responses, of policies gram and best, belong to one trajectory per noise")
    check_differentiable(sampler.solver, sampler.backbone.input_shape)
    check_weights(sampler.backbone, sampler.backbone.conventions.name)


@contextmanager
def _gradients_refused(backbone: Backbone) -> Iterator[None]:
    """Replace the error of a model without a backward pass (quantised weights, inference kernels) by a sentence."""
    try:
        yield
    except RuntimeError as error:  # also where a kernel has no backward pass
        if out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{backbone.conventions.name} passes no gradient from its output to its layers ({reason}); measure by "
            "forward passes alone (responses.method=forward; cheapest with model.layers=[output]), or on the "
            "same weights in plain 16 or 32 bits"
        ) from error


def _responses(
    trajectory: _Trajectory, between: Sequence[Tensor], probes: Tensor, reach: tuple[int, int], bar: tqdm
) -> tuple[Tensor, Tensor]:
    """Return responses (E, L + 1, A + B, n, K) to outputs 1..A evaluations older, then 1..B younger.

    Beside them those (E, 1, S (A + B), n, K) to the whole outputs at S times between each two evaluations, the
    nearest first; S = 0 where there are none.
    """
    outputs, count = trajectory.layers, len(trajectory.image)
    per = len(between) // (len(outputs) - 1) if between else 0
    found = torch.zeros(len(outputs), len(outputs[0]), sum(reach), count, len(probes))
    to_between = torch.zeros(len(outputs), 1, per * sum(reach), count, len(probes))
    for e, k, gradients in trajectory.gradients(probes.to(trajectory.image)):
        others = list(_around(e, len(outputs) - 1 - e, reach))
        for layer, gradient in enumerate(gradients):
            for place, back in others:
                found[e, layer, place, :, k] = _along(gradient, outputs[e - back][layer], outputs[e][layer], count)
        wide = reach[0] * per, reach[1] * per
        for place, back in _around(e * per, (len(outputs) - 1 - e) * per, wide):
            other = between[e * per - back if back > 0 else e * per - back - 1]
            to_between[e, 0, place, :, k] = _along(gradients[-1], other, outputs[e][-1], count)
        bar.update()
    return found, to_between


def _around(before: int, after: int, reach: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield (place, distance) of outputs before, 1, 2, ..., and after, -1, -2, ..., as far as they are and reach."""
    older, younger = reach
    yield from ((d - 1, d) for d in range(1, min(before, older) + 1))
    yield from ((older + d - 1, -d) for d in range(1, min(after, younger) + 1))


def _along(gradient: Tensor, output: Tensor, own: Tensor, count: int) -> Tensor:
    """Return how far an output in the place of one's own moves the image along the gradient's direction, (n,)."""
    change = (gradient * (output - own)).flatten(1).sum(1)  # (n or 2 n,)
    return change.view(-1, count).sum(0).cpu()
