"""Measure what the calibrated policies need, once per model and sampler.

l2c calibrate model=dit_digits
"""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from l2c.calibration.settings import RESPONSES
from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import BACKBONE_SETTINGS, configured_backbone, is_pipeline
from l2c.commands.frame.graphs import write_graph
from l2c.commands.frame.table import command_line
from l2c.evaluation.comparison import calibration_files
from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import output_file
from l2c.io.json_fields import CALIBRATION, form_of
from l2c.policies.calibration import Calibration
from l2c.policies.context import PolicyContext
from l2c.policies.settings import needs_of
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler
from l2c.sampling.uncached import uncached_by

SETTINGS = ("seed", "first_trajectory", "num_trajectories", "batch_size", "changes", "responses")
# Nothing reads these where parts are joined.
OF_MEASURING = ("measure", *(name for name in SETTINGS if name != "batch_size"))


@cli.entry("calibrate")
def main(cfg: DictConfig) -> None:
    """Load, run seeded trajectories, save the calibration."""
    if isinstance(cfg.measure, str):
        cfg.measure = [cfg.measure]
    needs = needs_of(cfg.policy.name, cfg.policy) if "policy" in cfg else ()
    missing = [what for what in needs if what not in cfg.measure and not cfg.parts]
    if missing:
        raise ValueError(f"policy {cfg.policy.name} needs {missing[0]}; say measure=[{','.join(missing)}]")
    if cfg.parts and (unused := cli.repeated(*OF_MEASURING)):
        raise ValueError(f"parts= joins what was measured, so that {unused[0]} would do nothing; leave it out")
    name = Path(cfg.pipeline).resolve().name if is_pipeline(cfg.model) else cfg.model.name
    wanted = cfg.output or f"runs/calibrate/{name}.safetensors"
    with output_file("output", wanted, ours=lambda there: form_of(there) == CALIBRATION) as path:
        _calibrate(cfg, path)


def _calibrate(cfg: DictConfig, path: Path) -> None:
    """Measure or join, write the calibration and where a policy is given its graph."""
    sampler = cache(lambda: uncached_by(configured_backbone(cfg.model, cfg.solver), cfg.solver))  # joining needs none
    if cfg.parts:
        calibration = Calibration.joined(calibration_files(cfg.parts))
        if cfg.true_errors and RESPONSES in calibration.tensors:
            calibration = _corrected(calibration, sampler(), cfg)
    else:
        settings: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(SETTINGS)))
        calibration = Calibration.measure(sampler(), what=cfg.measure, true_errors=cfg.true_errors, **settings)
    calibration.save(path)
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in calibration.tensors.items())
    print(f"wrote {path}: {shapes}")
    if "policy" in cfg:
        graph, made = write_graph(cfg, PolicyContext.of(sampler(), Calibration.load(path)), cli.run_folder())
        print(f"{graph.summary()}\nwrote {made}")
    else:
        same = cli.repeated(*BACKBONE_SETTINGS, "solver")
        count = "solver.num_evaluations"
        if cfg.parts and not is_pipeline(cfg.model) and not any(one.startswith(count) for one in same):
            same = [*same, f"{count}={calibration.binding.num_evaluations}"]  # which joining needs nobody to say
        policy = "best" if RESPONSES in calibration.tensors else "block_caching"
        print(f"next: {command_line('graph', *same, f'policy={policy}', budget=0.75, calibration=path)}")


def _corrected(calibration: Calibration, sampler: Sampler, cfg: DictConfig) -> Calibration:
    """Return a joined calibration with true errors of its own graphs, in the place of those of its parts."""
    binding = binding_of(sampler.backbone, sampler.solver, weights_bound=True, guidance=sampler.guidance)
    calibration.check(CacheGraph.blank(binding))
    return calibration.corrected(sampler, num_trajectories=cfg.true_errors, batch_size=cfg.batch_size)


if __name__ == "__main__":
    main()
