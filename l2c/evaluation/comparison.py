"""Many methods at several budgets on the same noise: each cell measured once, and remembered in a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from l2c.backbones.backbone import Backbone, known_by
from l2c.calibration.measurements import Measurements
from l2c.evaluation.comparison_folder import ComparisonFolder, cell_name, targets_digest
from l2c.evaluation.comparison_settings import ODE_EVALUATIONS, ComparisonSettings
from l2c.evaluation.dynamic import DynamicSampler
from l2c.evaluation.dynamic_methods import OPTIONS, at_budget
from l2c.evaluation.method_settings import BY_RESPONSES, DYNAMIC_OPTIONS, FEWER_STEPS
from l2c.evaluation.metrics import image_error
from l2c.graph.cache_graph import CacheGraph
from l2c.io.digests import sha256_of
from l2c.io.names import counted, listed
from l2c.policies.best import reference_evaluations, with_responses
from l2c.policies.budget import BudgetOutOfReach, Worth
from l2c.policies.context import PolicyContext
from l2c.policies.registry import POLICIES, make_graph, with_defaults
from l2c.policies.settings import needs_of
from l2c.report.method_table import Cell
from l2c.report.samples import SampleRow
from l2c.sampling.batches import labels_in_turn, sample_in_batches
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.solver_settings import SolverSettings
from l2c.sampling.uncached import uncached_by
from l2c.speed.latency import alternate

MEASURED = {"changes": "layer_change", "responses": "responses"}  # a tensor of each part of a calibration
SECOND_ORDER = ("dpm_solver_2s", "DPMSolverSinglestepScheduler")  # two evaluations a step
NEAR = 0.2  # a trained graph belongs to a budget if its MACs are this near, in evaluations


@dataclass(frozen=True)
class Draw:
    """One seed of a method at a budget.

    Attributes:
        sampler: makes its sampler; None where the budget is out of reach.
        origin: inputs of its cell other than the common settings, by name; defaults are written out.

    """

    sampler: Callable[[], Sampler | DynamicSampler | None]
    origin: Mapping[str, Any] = field(default_factory=dict)


class Comparison:
    """The samplers and noises that all cells share, and the folder that remembers finished cells.

    Args:
        backbone: the network.
        solver: solver of the uncached trajectory.
        settings: methods, budgets and noises.
        folder: folder of cells, pictures and graphs.

    Raises:
        FileNotFoundError: if a calibration is asked for that is not there.

    """

    def __init__(
        self, backbone: Backbone, solver: SolverSettings, settings: ComparisonSettings, folder: Path
    ) -> None:
        self.asked = settings
        self.solver = solver
        self.graphs = dict(settings.graphs or {})  # name: pattern
        self.folder = folder
        self.kept = ComparisonFolder(folder, settings.any_version)
        self.backbone = backbone
        self.calibrations = calibration_files(settings.calibration)
        self.uncached = self.uncached_at(solver.num_evaluations)
        self.contexts = [PolicyContext.of(self.uncached, Measurements.load(path)) for path in self.calibrations]
        self.context = self.contexts[0] if self.contexts else PolicyContext.of(self.uncached)
        self.noise = seeded_noise(backbone.input_shape, settings.seed, settings.num_images)
        self.labels = labels_in_turn(backbone.num_labels, settings.num_images)

    def check_calibrations(self) -> None:
        """Refuse methods that need what a calibration does not hold, and calibrations on the noises compared on.

        Raises:
            ValueError: if a calibration or a part of it is missing, or it was made on those noises.

        """
        chosen = self.asked.chosen
        needs = {name: needs_of(given.get("policy", name), given) for name, given in chosen.items()}
        calibrated = [name for name in chosen if needs[name]]
        if calibrated and not self.contexts:
            missing = (
                "no calibration is given; run l2c calibrate measure=[changes,responses] and pass calibration=PATH"
            )
            raise ValueError(self._lacking(calibrated, missing))
        for context, (what, tensor) in product(self.contexts, MEASURED.items()):
            of_it = [name for name in calibrated if what in needs[name] and "solver" not in chosen[name]]
            if context is not self.context:  # others than the first one are for these alone
                of_it = [name for name in of_it if chosen[name].get("policy", name) in BY_RESPONSES]
            try:
                if of_it:
                    context.required_calibration().tensor(tensor)
            except ValueError as error:
                raise ValueError(self._lacking(of_it, str(error))) from error
        for path, context in zip(self.calibrations, self.contexts, strict=True):
            if context.required_calibration().settings.get("seed") == self.asked.seed:
                raise ValueError(
                    f"{path} was calibrated on the noises of seed {self.asked.seed}, where graphs would be compared; "
                    "choose another seed"
                )

    def _lacking(self, methods: Sequence[str], missing: str) -> str:
        """Return the sentence on methods that lack something."""
        names = [name for name in self.asked.chosen if name not in methods]
        others = ",".join([*names, *self.graphs])
        alone = f", or compare the others alone with only=[{others}]" if others else ""
        return f"{', '.join(methods)}: {missing}{alone}"

    def uncached_at(self, num_evaluations: int) -> Sampler:
        """Return an uncached sampler."""
        return uncached_by(self.backbone, self.solver.to_dict(), num_evaluations=num_evaluations)

    def uncached_with(self, solver: str, num_evaluations: int) -> Sampler:
        """Return an uncached sampler of another solver under the comparison's guidance."""
        settings = {**self.solver.to_dict(), "name": solver, "options": {}}
        return uncached_by(self.backbone, settings, num_evaluations=num_evaluations)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine every cell, by name."""
        return {
            "num_images": self.asked.num_images,
            "seed": self.asked.seed,
            **{f"solver.{name}": value for name, value in self.solver.to_dict().items()},
            **{"pipeline": None, **known_by(self.backbone)},
            "measured_to": self.asked.measured_to,
        }

    @cached_property
    def targets(self) -> torch.Tensor:
        """The images that errors are measured to, drawn once and kept in the folder.

        The uncached sampler draws them; with `measured_to=ode` the same solver with 200 evaluations.
        """
        images = self.kept.targets(self.settings)
        if images is None:
            sampler = self.uncached if self.asked.measured_to == "uncached" else self.uncached_at(ODE_EVALUATIONS)
            images = self.images(sampler)
            self.kept.keep_targets(images, self.settings)
        return images

    @cached_property
    def _digest_of_targets(self) -> str:
        return targets_digest(self.targets)

    def images(self, sampler: Sampler | DynamicSampler) -> torch.Tensor:
        """Return a sampler's images (N, C, H, W) of the noises that all methods are compared on."""
        return sample_in_batches(
            sampler, self.labels, self.noise, batch_size=self.asked.batch_size, seed=self.asked.seed
        )

    def draws(self, method: str, worth: float) -> list[Draw]:
        """Return the draws of a method at a budget, one per seed."""
        if method == FEWER_STEPS:
            return [Draw(partial(self.uncached_at, fewer_evaluations(self.uncached.solver.name, worth)))]
        if method in self.graphs:
            return self.trained_graphs(method, worth)
        options = dict(self.asked.methods[method] or {})
        policy = options.pop("policy", method)
        said = {"policy": policy, **written_out(policy, options)}
        if policy == FEWER_STEPS:
            name = options.pop("solver", self.uncached.solver.name)
            return [Draw(partial(self.uncached_with, name, fewer_evaluations(name, worth)), {**said, "solver": name})]
        if policy in DYNAMIC_OPTIONS:
            return [Draw(partial(at_budget, policy, self.uncached, worth, **options), said)]
        if "solver" in options:
            name, count = options.pop("solver"), options.pop("num_evaluations", self.solver.num_evaluations)
            context = partial(calibrated, self.uncached_with(name, count), self.context)
            make = partial(self.sampler_for, method, policy, context, worth, options)
            how = self.context.calibration.settings if self.context.calibration else None
            return [Draw(make, {**said, "solver": name, "num_evaluations": count, "calibration": how})]
        files = list(map(sha256_of, self.calibrations))
        if policy == "random":
            chosen = [(self.context, {**options, "seed": seed}, "") for seed in range(self.asked.num_seeds)]
        elif policy in BY_RESPONSES and self.contexts:
            chosen = [(context, options, file) for context, file in zip(self.contexts, files, strict=True)]
        else:
            chosen = [(self.context, options, "".join(files[:1]))]
        return [
            Draw(
                partial(self.policy_sampler, method, policy, context, worth, given),
                {**said, **given, "calibration": file},
            )
            for context, given, file in chosen
        ]

    def sampler_for(
        self, method: str, policy: str, context: Callable[[], PolicyContext], worth: float, options: dict[str, Any]
    ) -> Sampler | None:
        """Return the sampler of a policy's graph for a context that is made first; None out of reach."""
        return self.policy_sampler(method, policy, context(), worth, options)

    def policy_sampler(
        self, method: str, policy: str, context: PolicyContext, worth: float, options: dict[str, Any]
    ) -> Sampler | None:
        """Return the sampler of a policy's graph; None where it cannot reach the budget."""
        try:
            return self.graph_sampler(make_graph(policy, context, budget=Worth(worth), **options))
        except BudgetOutOfReach as error:
            tqdm.write(f"{method} at {worth:g}: {error}")
            return None

    def trained_graphs(self, method: str, worth: float) -> list[Draw]:
        """Return the trained graphs whose MACs are near a budget.

        Raises:
            ValueError: if a graph was made for another solver or number of evaluations.

        """
        blank = self.context.blank
        found, costs = [], []
        paths = matching(self.graphs[method])
        for path in paths:
            graph = CacheGraph.load(path)
            if (graph.solver, reference_evaluations(graph)) != (blank.solver, blank.num_evaluations):
                own = f"{blank.num_evaluations} evaluations of {blank.solver}"
                raise ValueError(
                    f"{path} was made for {reference_evaluations(graph)} evaluations of {graph.solver}, but graphs "
                    f"are compared under {own}; leave it out, or choose its solver"
                )
            costs.append(self.context.cost.evaluations_worth(graph))
            if abs(costs[-1] - worth) <= NEAR:
                found.append(Draw(partial(self.graph_sampler, graph), {"graph": sha256_of(path)}))
        if not found:
            theirs = f"they cost {listed(f'{cost:.2f}' for cost in sorted(costs))}"
            what = f"none of {counted(len(paths), 'graph')} is within {NEAR}, {theirs}" if paths else "there are none"
            tqdm.write(f"{method} at {worth:g}: left out, {what} ({self.graphs[method]})")
        return found

    def graph_sampler(self, graph: CacheGraph) -> Sampler:
        """Return the sampler of a graph under the comparison's guidance."""
        return Sampler(self.backbone, graph=graph, cfg_scale=self.solver.cfg_scale)

    def measure(self, method: str, worth: float, seed: int, draw: Draw) -> list[Cell]:
        """Return the cell of a draw, read from the folder if nothing changed; none if the budget is out of reach."""
        name = cell_name(method, worth)
        timing = {"timing_batch": self.asked.timing_batch, "timing_repetitions": self.asked.timing_repetitions}
        origin = {"method": method, **draw.origin, "budget": worth, **timing, "targets": self._digest_of_targets}
        found = self.kept.recall(file := f"{name}-{seed}", origin)
        if not isinstance(found, str):
            return found
        if found:
            tqdm.write(f"{method} at {worth:g} is measured again: {found}")
        sampler = draw.sampler()
        if seed == 0:
            self.kept.forget(name)
        cells = [] if sampler is None else [self.cell(method, worth, seed, sampler)]
        self.kept.keep(file, origin, cells)
        return cells

    def cell(self, method: str, worth: float, seed: int, sampler: Sampler | DynamicSampler) -> Cell:
        """Sample and time; keep a picture of the first seed.

        Dynamic methods are timed one image at a time, as they decide.
        """
        images = self.images(sampler)
        error = image_error(images, self.targets)
        graph = sampler.graph
        if isinstance(sampler, DynamicSampler):
            spent: float = sampler.evaluations_worth
        elif graph is None:
            spent = sampler.solver.num_evaluations
        else:
            spent = self.context.cost.evaluations_worth(graph)
        count = 1 if isinstance(sampler, DynamicSampler) else self.asked.timing_batch
        labels = None if self.labels is None else self.labels[:count]
        timed = {
            "uncached": partial(self.uncached.sample, labels, noise=self.noise[:count]),
            "this": partial(sampler.sample, labels, noise=self.noise[:count]),
        }
        times = alternate(timed, repetitions=self.asked.timing_repetitions)
        if seed == 0:
            self.kept.draw(cell_name(method, worth), SampleRow.of(method, images, self.targets), graph)
        return Cell(
            method,
            worth,
            seed,
            float(spent),
            error.mse,
            error.mse_standard_error,
            error.mse_p99,
            times["this"].seconds,
            times["uncached"].seconds,
        )


def calibrated(sampler: Sampler, like: PolicyContext) -> PolicyContext:
    """Return the context of another uncached sampler, its responses measured as those of `like` were."""
    if like.calibration is None:
        return PolicyContext.of(sampler)
    return with_responses(sampler, like.calibration.settings)


def written_out(policy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a method with its defaults, which a later version may change."""
    if policy in DYNAMIC_OPTIONS:
        return with_defaults(at_budget, {**OPTIONS[policy], **options})
    return with_defaults(POLICIES[policy], options) if policy in POLICIES else dict(options)


def fewer_evaluations(solver: str, worth: float) -> int:
    """Return the number of evaluations of an uncached sampler that costs about as much as a graph.

    An odd number would end 2S with a first-order step, which makes this baseline look far worse than it is. A
    budget midway between two numbers takes the smaller one, as graphs do.
    """
    unit = 2 if solver in SECOND_ORDER else 1
    return max(2, unit * math.ceil(worth / unit - 0.5))


def matching(pattern: str) -> list[Path]:
    """Return the files that a glob pattern names, in order."""
    full = Path(pattern).absolute()
    return sorted(Path(full.anchor).glob(str(full.relative_to(full.anchor))))


def calibration_files(patterns: str | Sequence[str] | None) -> list[Path]:
    """Return the files of calibrations: one, or as many as a glob pattern or a list of them names.

    Raises:
        FileNotFoundError: if there is none where some are asked for.

    """
    asked = [patterns] if isinstance(patterns, str) else list(patterns or [])
    for pattern in asked:
        if not matching(pattern):
            raise FileNotFoundError(f"no calibration at {pattern}; l2c calibrate writes them")
    return list(dict.fromkeys(path for pattern in asked for path in matching(pattern)))  # a seed counts once
