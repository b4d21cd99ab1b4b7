"""Runs whole tiny pipelines end to end under cache graphs: calibrated, applied, sampled, removed."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tiny_pipelines import STEPS, TinyPipeline, tiny_pipeline

import l2c
from l2c.graph.collection import CacheGraphs

BUDGET = 0.5
HEAD = """
## Whole pipelines

Each pipeline is built from tiny random parts and called with {steps} steps under guidance, decoding included, with
`l2c.accelerate` at half of the MACs.

- *Right* is "yes" if an all-compute graph gives the plain pipeline's output bit for bit, the accelerated output is
  finite, differs from the plain one and repeats in a second call, and the output after `l2c.remove` is that before.
- *Policy* is the one that `accelerate` chose; *error* is how far latents of four new noises are from the uncached
  ones (L2, relative; with random weights it says nothing about trained models).
- *As drawn* is "yes" if our sampler, on which the pipeline was calibrated, gives the pipeline's latents.

{counts}

| pipeline | denoiser | right | policy | error | as drawn | refused, and why |
|---|---|---|---|---|---|---|
"""


@dataclass
class Outcome:
    """What holds for one pipeline."""

    name: str
    pipeline: str
    denoiser: str
    policy: str = ""
    error: str = ""
    drawn: str = ""
    refused: str = ""

    @property
    def right(self) -> bool:
        """Whether everything holds."""
        return not self.refused

    @property
    def line(self) -> str:
        """Row of the table."""
        right = "yes" if self.right else "no"
        refused = self.refused.replace("|", "/")
        return (
            f"| `{self.pipeline}` ({self.name}) | {self.denoiser} | {right} | {self.policy} | {self.error} | "
            f"{self.drawn} | {refused} |"
        )


def all_computed(graph: Any) -> Any:
    """Return a graph, or the graphs of two denoisers, whose rows compute everything."""
    if isinstance(graph, Mapping):
        return CacheGraphs({name: all_computed(part) for name, part in graph.items()})
    rows = ((True,) * graph.num_layers,) * graph.num_evaluations
    return graph.replace(rows=rows, reuse=(), slopes=(), weights=(), routed=None)


def check(tiny: TinyPipeline, outcome: Outcome) -> None:
    """Accelerate a pipeline and compare with the plain one; write down what is found.

    Raises:
        ValueError: if something is not as it must be; the message says what.

    """

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(what)

    pipe = tiny.pipe
    plain = tiny.draw()
    need(torch.equal(tiny.draw(), plain), "the plain pipeline is not deterministic")
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        options = {name: value for name, value in tiny.options.items() if name != "output_type"}
        settings = {"num_inference_steps": STEPS, "guidance_scale": tiny.scale, "options": options}
        graph = l2c.accelerate(pipe, tiny.prompts, budget=BUDGET, num_trajectories=2, folder=folder, **settings)
    *_, reused, error = said.getvalue().strip().splitlines()
    outcome.policy, outcome.error = reused.split(":")[0], error.split("differ by ")[1].split(" (")[0]
    cached = tiny.draw()
    need(bool(cached.isfinite().all()), "the cached output is not finite")
    need(not torch.equal(cached, plain), "the graph changes nothing")
    need(torch.equal(tiny.draw(), cached), "a second call differs from the first")
    need(not torch.equal(tiny.draw(tiny.prompts[1]), cached), "another prompt draws the same")
    l2c.remove(pipe)
    need(torch.equal(tiny.draw(), plain), "the graph leaves traces when it is removed")
    with l2c.applied(pipe, all_computed(graph)):
        need(torch.equal(tiny.draw(), plain), "a graph that computes everything changes bits")
    outcome.drawn = calibrated_as_drawn(tiny)


@torch.no_grad()
def calibrated_as_drawn(tiny: TinyPipeline) -> str:
    """Return whether our sampler draws what the pipeline draws, from the same noise, for people.

    What the model is given at the last evaluation is compared: it has the same form in both.
    """
    from l2c.integrations.diffusers.guidance import guidance_of
    from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
    from l2c.integrations.diffusers.recorded.steps import Unset

    if tiny.options.get("strength", 1.0) < 1:
        return "not compared: begins half-way"
    backbone: Any = pipeline_backbone(
        tiny.pipe, tiny.prompts, num_evaluations=STEPS, guidance_scale=tiny.scale, options=tiny.options
    )
    scale = guidance_of(tiny.pipe).asked(tiny.pipe, tiny.options, tiny.scale)
    steps = backbone.own_solver.num_evaluations  # fewer where a call ends early
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=steps, cfg_scale=scale)
    if sampler.solver.stochastic:
        return "not compared: adds noise"
    theirs = inputs_of(tiny, tiny.draw, Unset(tiny.pipe))
    ones = torch.ones(1, *backbone.input_shape)
    moving = getattr(backbone, "network", backbone).moving  # of a whole output
    scaled = moving(inputs_of(tiny, lambda: sampler.sample([0], noise=ones))[0]).mean()
    noise = moving(theirs[0]) / scaled
    ours, last = moving(inputs_of(tiny, lambda: sampler.sample([0], noise=noise))[-1]), moving(theirs[-1])
    difference = float((ours - last).norm() / last.norm())
    return "yes" if difference < 1e-3 else f"off by {100 * difference:.0f} %"


def inputs_of(tiny: TinyPipeline, run: Callable[[], Any], unset: Any = False) -> list[torch.Tensor]:
    """Return the noisy input that the denoisers are given at each evaluation of the first trajectory of a run.

    Args:
        tiny: the pipeline.
        run: draws.
        unset: true as long as calls of the denoisers are no evaluations, see `recorded.steps.Unset`.

    """
    from l2c.integrations.diffusers.denoisers import denoisers_of
    from l2c.integrations.diffusers.recorded.call import RecordedCall

    given: dict[float, torch.Tensor] = {}

    def look(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if unset:
            return
        call = RecordedCall.of(module, args, kwargs)
        given.setdefault(call.t, call.x[:1].clone())

    hooks = [model.register_forward_pre_hook(look, with_kwargs=True) for model in denoisers_of(tiny.pipe).values()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(given.values())


def outcome_of(name: str) -> Outcome:
    """Return what holds for a pipeline."""
    from l2c.backbones.backbone import class_name
    from l2c.integrations.diffusers.denoisers import denoisers_of

    try:
        tiny = tiny_pipeline(name)
    except ImportError as error:  # of a package that a pipeline needs (ConsisID: OpenCV)
        return Outcome(name, "?", "?", refused=" ".join(str(error).split())[:200])
    models = denoisers_of(tiny.pipe)
    names, kinds = (dict.fromkeys(f"`{key}`" for key in keys) for keys in (models, map(class_name, models.values())))
    outcome = Outcome(name, type(tiny.pipe).__name__, f"{' and '.join(names)}: {' and '.join(kinds)}")
    try:
        check(tiny, outcome)
    except Exception as error:  # the table says what is refused, and why
        outcome.refused = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return outcome
