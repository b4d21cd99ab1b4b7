"""Measure what the calibrated policies need, once per model and sampler.

l2c calibrate model=dit_digits
"""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from l2c.calibration.changes import measure_changes
from l2c.calibration.grid import Grid
from l2c.calibration.responses import measure_both_ways
from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import BACKBONE_SETTINGS, configured_backbone
from l2c.commands.frame.graphs import write_graph
from l2c.commands.frame.table import command_line
from l2c.diffusion import SOLVERS, Solver
from l2c.io.atomic import check_writable
from l2c.policies.calibration import Calibration
from l2c.policies.context import PolicyContext
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import uncached_by

SETTINGS = ("seed", "num_trajectories", "measure", "changes", "responses")


@cli.entry("calibrate")
def main(cfg: DictConfig) -> None:
    """Load, run seeded trajectories, save the statistics."""
    if isinstance(cfg.measure, str):
        cfg.measure = [cfg.measure]
    check_writable(cfg.output)
    backbone = configured_backbone(cfg.model, cfg.solver)
    sampler = uncached_by(backbone, cfg.solver)
    noise = seeded_noise(backbone.input_shape, cfg.seed, cfg.num_trajectories)
    labels = labels_in_turn(backbone.num_labels, len(noise))
    tensors: dict[str, torch.Tensor] = {}
    if "changes" in cfg.measure:
        tensors |= measure_changes(sampler, labels, noise, max_age=cfg.changes.max_age, batch_size=cfg.batch_size)
    if "responses" in cfg.measure:
        tensors["responses"], tensors["responses_ahead"] = measure_both_ways(
            sampler,
            labels,
            noise,
            num_probes=cfg.responses.num_probes,
            max_age=cfg.responses.max_age,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
        )
    settings = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(SETTINGS)))
    assert isinstance(settings, dict)
    path = Path(cfg.output)
    _calibration(sampler, tensors, {str(key): value for key, value in settings.items()}, cfg.true_errors).save(path)
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    print(f"wrote {path}: {shapes}")
    if "policy" in cfg:
        graph, made = write_graph(cfg, PolicyContext.of(sampler, Calibration.load(path)), cli.run_folder())
        print(f"{graph.summary()}\nwrote {made}")
    else:
        same = cli.repeated(*BACKBONE_SETTINGS, "solver")
        policy = "best" if "responses" in cfg.measure else "block_caching"
        print(f"next: {command_line('graph', *same, f'policy={policy}', budget=0.75, statistics=path)}")


def _calibration(
    sampler: Sampler, tensors: dict[str, torch.Tensor], settings: dict[str, Any], true_errors: int
) -> Calibration:
    """Return the calibration of what was measured, with true errors of a few trajectories beside predicted ones."""
    context, solver = PolicyContext.of(sampler), sampler.solver
    calibration = Calibration(
        tensors,
        context.blank.binding,
        settings,
        grid=_grid(solver) if "responses" in tensors else None,
        schedule=solver.schedule if solver.name in SOLVERS else None,
        cost=context.cost,
    )
    if "responses" in tensors and true_errors:
        calibration = calibration.corrected(sampler, num_trajectories=true_errors)
    return calibration


def _grid(solver: Solver) -> Grid | None:
    """Return the evaluations of a solver; None, with a word, where responses cannot be carried from them."""
    try:
        return Grid.of(solver)
    except ValueError as error:
        print(f"graphs can be made for these times only: {error}")
        return None


if __name__ == "__main__":
    main()
