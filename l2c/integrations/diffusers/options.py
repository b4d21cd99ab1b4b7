"""Options of a pipeline's call that are refused: those that are made of other settings here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from l2c.integrations.diffusers.guidance import EMBEDDED, TRUE, guidance_of
from l2c.integrations.diffusers.prompts import condition_of
from l2c.io.names import quoted
from l2c.io.tensors import check_nested

PER_PROMPT = r"num_\w+_per_prompt"
OF_CALLS = re.compile(rf"{PER_PROMPT}|output_type|return_dict|callback\w*")


@dataclass(frozen=True)
class Names:
    """What the settings are called that say these things beside the options, `options` itself included."""

    options: str = "options"
    steps: str = "num_inference_steps"
    scale: str = "guidance_scale"
    prompts: str = "prompts"
    seed: str = "seed"


OF_COMMANDS = Names("model.options", "solver.num_evaluations", "solver.cfg_scale")


def check_options(pipe: Any, options: Mapping[str, Any] | None, names: Names) -> None:
    """Refuse options that would be set twice, or that belong to a user's own calls.

    Args:
        pipe: the pipeline.
        options: further arguments of its call; None = none. Those that are None are passed over.
        names: of the settings that stand beside them.

    Raises:
        ValueError: if there is such an option; the message says which setting has its place. Also if one is nested
            too deep.

    """
    guidance = guidance_of(pipe)
    condition, scale = condition_of(pipe), guidance.argument
    places: dict[str | None, str] = {
        "num_inference_steps": names.steps,
        **dict.fromkeys((condition, f"{condition}_embeds"), names.prompts),
        **dict.fromkeys(("generator", "latents"), names.seed),
        **dict.fromkeys((scale, EMBEDDED) if scale == TRUE else (scale,), names.scale),
        **dict.fromkeys(guidance.single, names.scale),
    }
    for option, value in (options or {}).items():
        if value is None:
            continue
        head, place = f"{names.options} holds {quoted(option)}", places.get(option)
        if place is not None:
            raise ValueError(f"{head}, which {place}= says; give {place}= and leave it out of the options")
        if OF_CALLS.fullmatch(str(option)):
            raise ValueError(f"{head}, which changes nothing here; give it to your own calls of the pipeline")
        check_nested(f"{head}, whose", value)
