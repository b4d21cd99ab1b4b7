"""What a call of `accelerate` asks for, completed and checked, and the key by which it is kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2c.backbones.digest import known_digest
from l2c.graph.checks import MAX_EVALUATIONS, MAX_SCALE
from l2c.graph.given import each
from l2c.io.names import chosen, quoted
from l2c.io.numbers import AT_ONCE, LARGEST_SEED, finite_number, whole_number
from l2c.policies.registry import POLICIES


@dataclass(frozen=True)
class Asked:
    """The arguments of a call of `accelerate`, completed; those of another type or out of range are refused."""

    prompts: list[Any]
    steps: int
    scale: float | None
    policy: str | None
    options: Mapping[str, Any]
    num_trajectories: int
    num_probes: int
    seed: int
    layers: tuple[str, ...] | None

    @classmethod
    def of(
        cls,
        pipe: Any,
        prompts: Any,
        steps: int | None,
        scale: float | None,
        policy: str | None,
        options: Mapping[str, Any],
        *others: Any,
    ) -> Asked:
        """Return the arguments, with the pipeline's own number of steps and scale where they are None."""
        from l2c.integrations.diffusers.guidance import guidance_of
        from l2c.integrations.diffusers.options import Names, check_options

        check_options(pipe, options, Names())
        scale = None if scale is None else finite_number("guidance_scale", scale, low=-MAX_SCALE, high=MAX_SCALE)
        scale = guidance_of(pipe).asked(pipe, options, scale)
        return cls(_read(prompts, pipe), _steps(pipe, steps), scale, policy, options, *others)

    def __post_init__(self) -> None:
        for name, value in (
            # Of one step nothing can be reused.
            ("steps", whole_number("num_inference_steps", self.steps, low=2, high=MAX_EVALUATIONS)),
            ("policy", None if self.policy is None else chosen("policy", self.policy, POLICIES)),
            ("num_trajectories", whole_number("num_trajectories", self.num_trajectories, low=1, high=AT_ONCE)),
            ("num_probes", whole_number("num_probes", self.num_probes, low=1, high=1000)),
            ("seed", whole_number("seed", self.seed, low=0, high=LARGEST_SEED)),
        ):
            object.__setattr__(self, name, value)

    def key(self, pipe: Any) -> str:
        """Return a digest of these settings, the weights and settings of all parts of the pipeline; see `content_of`.

        Raises:
            ValueError: if something in the settings is known by its address alone.

        """
        from l2c.integrations.diffusers import denoisers_of
        from l2c.integrations.diffusers.adapters import effective_weights
        from l2c.integrations.diffusers.recorded.contents import content_of, numbers_in, part_content, parts_beside

        models = denoisers_of(pipe)
        content = {
            "weights": [known_digest(model, effective_weights(model)) for model in models.values()],
            "numbers": [numbers_in(model) for model in models.values()],
            "pipeline": part_content(type(pipe).__name__, pipe),
            "beside": {name: content_of(name, part) for name, part in parts_beside(pipe, models.values())},
            "prompts": content_of("prompts", self.prompts),
            "options": content_of("options", self.options),
            "settings": [
                *(self.steps, self.scale, self.policy, self.num_trajectories, self.seed),
                *(self.layers, self.num_probes),
            ],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _steps(pipe: Any, num_inference_steps: int | None) -> Any:
    """Return the number of steps, the pipeline's own where none is given."""
    from l2c.integrations.diffusers.guidance import defaults_of

    defaults = defaults_of(pipe)
    if "num_inference_steps" not in defaults:
        raise ValueError(
            f"{type(pipe).__name__} takes no num_inference_steps, by which a pipeline is calibrated; call l2c.apply "
            "with a graph for its transformer or U-Net instead"
        )
    steps = defaults["num_inference_steps"] if num_inference_steps is None else num_inference_steps
    if steps is None:
        raise ValueError(f"{type(pipe).__name__} has no number of steps of its own; give num_inference_steps")
    return steps


def _read(prompts: Any, pipe: Any) -> list[Any]:
    from l2c.integrations.diffusers.prompts import check_prompts, read_prompts

    if prompts is None or isinstance(prompts, (str, Path)):
        try:
            return read_prompts(None if prompts is None else str(prompts), pipe)
        except FileNotFoundError as error:
            itself = f"to draw the text itself, give it in a list, prompts=[{quoted(str(prompts))}]"
            raise FileNotFoundError(f"{error}; {itself}") from None
    return check_prompts(list(each("prompts", prompts)), pipe)
