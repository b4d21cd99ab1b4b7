"""How the final image answers when a layer's output is replaced by an older one: projections, by backward passes.

To first order, replacing the output f_e of a layer at evaluation e by f_e + d changes the image by J_e d. One
backward pass from a random direction q of image space gives q . J_e for all entries (evaluation, layer) at once,
so that q . J_e (f_{e-a} - f_e) costs an inner product for every age a. What `linear` reuse changes is a combination
of two ages, because J_e is linear: no second measurement is needed for it, nor for spans.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.io.seeds import ImageNoise
from l2c.sampling.gradients import check_differentiable
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
        seed: of the directions, which belong to images: the batch size does not change them.

    Raises:
        ValueError: the solver adds noise of its own, or passes no gradient on.

    """
    if sampler.solver.stochastic:
        raise ValueError(
            f"responses belong to one trajectory per noise, but {sampler.solver.name} adds noise of its own; take a "
            "deterministic solver (ddim with eta 0, dpm_solver_2s, dpm_solver_2m) for policies gram and best"
        )
    check_differentiable(sampler.solver, sampler.backbone.input_shape)
    parts = []
    total = -(-len(noise) // batch_size) * (num_probes + 1)
    with tqdm(total=total, desc="responses", unit="pass") as bar:
        for start in range(0, len(noise), batch_size):
            part = slice(start, start + batch_size)
            count = len(noise[part])
            size = noise[0].numel()
            directions = ImageNoise("directions of responses", seed, range(start, start + count))
            draws = directions((count, size, num_probes))
            probes = torch.linalg.qr(draws).Q.movedim(2, 0)  # (K, n, P), orthonormal per image
            batch_labels = None if labels is None else labels[part]
            parts.append(_responses(sampler, batch_labels, noise[part], probes, max_age, bar))  # (E, L, A, n, K)
    responses = torch.cat(parts, dim=3).flatten(3)
    return responses / responses.shape[3] ** 0.5


def _responses(
    sampler: Sampler, labels: Tensor | None, noise: Tensor, probes: Tensor, max_age: int, bar: tqdm
) -> Tensor:
    backbone = sampler.backbone
    everything = (True,) * backbone.num_layers
    count = len(noise)
    device = next(backbone.parameters()).device
    network = GuidedBackbone(backbone, None if labels is None else labels.to(device), sampler.guidance)
    outputs: list[list[Tensor]] = []

    def evaluate(x: Tensor, t: float) -> Tensor:
        output, layers = backbone.forward_cached(*network.inputs(x, t), network.y, everything)
        outputs.append([layer for layer in layers if layer is not None])
        return network.merge(output)

    with torch.enable_grad():
        image = sampler.solver.sample(evaluate, noise.to(device).requires_grad_(True))
    bar.update()
    entries = [layer for layers in outputs for layer in layers]
    num_evaluations, num_layers = len(outputs), len(outputs[0])
    result = torch.zeros(num_evaluations, num_layers, max_age, count, len(probes))
    for k, probe in enumerate(probes.to(device)):
        gradients = torch.autograd.grad(
            (image.flatten(1) * probe).sum(),
            entries,
            retain_graph=k < len(probes) - 1,
            materialize_grads=True,  # a last block may make a text stream that nothing reads
        )
        with torch.no_grad():
            for e in range(1, num_evaluations):
                for layer in range(num_layers):
                    gradient, now = gradients[e * num_layers + layer], outputs[e][layer]
                    for age in range(1, min(e, max_age) + 1):
                        change = (gradient * (outputs[e - age][layer] - now)).flatten(1).sum(1)  # (n or 2 n,)
                        result[e, layer, age - 1, :, k] = change.view(-1, count).sum(0).cpu()
        bar.update()
    return result
