"""Prompts, or class labels, for a pipeline: from a file, or a few built-in ones."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from l2c.integrations.diffusers.denoisers import denoiser_of
from l2c.io.names import shown

PROMPTS = (
    "a photograph of a cat on a window sill",
    "a mountain lake at dawn",
    "a bowl of fruit, oil painting",
    "an old man reading a newspaper",
    "a red bicycle against a brick wall",
    "a city street in the rain at night",
    "a macro photograph of a dragonfly",
    "an astronaut riding a horse",
)
NUM_DEFAULT_LABELS = 8
CONDITIONS = ("class_labels", "prompt", "image")  # arguments of a call that say what to draw, the first one counts


def array_of(value: Any) -> Any:
    """Return a picture or a tensor as an array of numpy; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().float().cpu().numpy()
    array = isinstance(value, np.ndarray) or hasattr(value, "__array_interface__")  # PIL's pictures
    return np.asarray(value) if array and not isinstance(value, np.generic) else None


def digest_of_array(array: Any) -> str:
    """Return the SHA-256 of an array's shape, type and values."""
    return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).hexdigest()


def condition_of(pipe: Any) -> str:
    """Return the argument of a pipeline's call that says what to draw: `prompt`, `class_labels` or `image`.

    Raises:
        ValueError: if it has none of these.

    """
    parameters = inspect.signature(pipe.__call__).parameters
    found = next((name for name in CONDITIONS if name in parameters), None)
    if found is None:
        raise ValueError(
            f"{type(pipe).__name__} takes none of {', '.join(CONDITIONS)}, so that it cannot be calibrated on what "
            "it is to draw; wrap its model by l2c.wrap, or apply a graph that was made elsewhere"
        )
    return found


def by_class(pipe: Any) -> bool:
    """Return whether a pipeline draws classes, not texts."""
    return condition_of(pipe) == "class_labels"


def empty_of(pipe: Any) -> Any:
    """Return the empty prompt."""
    return denoiser_of(pipe).config.num_embeds_ada_norm if by_class(pipe) else ""


def check_prompts(prompts: Sequence[Any], pipe: Any) -> list[Any]:
    """Return prompts as the pipeline takes them: texts, pictures, or class labels as integers.

    Raises:
        ValueError: if there are none, a text is empty, one is no label of the model, or there are texts for a
            pipeline that draws from pictures alone.

    """
    if not prompts:
        raise ValueError("prompts is empty; give at least one prompt, or None for a few of ours")
    if condition_of(pipe) == "image":
        if any(isinstance(prompt, str) for prompt in prompts):
            raise _pictures_needed(pipe)
        return list(prompts)
    if not by_class(pipe):
        wrong = [prompt for prompt in prompts if not isinstance(prompt, str) or not prompt.strip()]
        if wrong:
            raise ValueError(f"prompts must be texts that are not empty, got {wrong[0]!r}")
        return list(prompts)
    return labels_of(prompts, pipe, "prompts")


def _pictures_needed(pipe: Any) -> ValueError:
    return ValueError(
        f"{type(pipe).__name__} draws from pictures, not from texts; give a list of pictures (PIL) as prompts"
    )


def labels_of(prompts: Sequence[Any], pipe: Any, where: str) -> list[int]:
    """Return class labels as integers; `where` they stand begins the sentence that refuses one."""
    num_classes = denoiser_of(pipe).config.num_embeds_ada_norm
    wrong = [label for label in prompts if not str(label).isdigit() or int(label) >= num_classes]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]!r} is no class label; this pipeline takes 0..{num_classes - 1}")
    return [int(label) for label in prompts]


def read_prompts(path: str | None, pipe: Any) -> list[Any]:
    """Return the lines of a file as prompts, or as class labels where the pipeline takes those; None = built-in ones.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or not UTF-8, or a line is empty or no label of the model.

    """
    if condition_of(pipe) == "image":
        raise _pictures_needed(pipe)
    labels = by_class(pipe)
    num_classes = denoiser_of(pipe).config.num_embeds_ada_norm if labels else 0
    if path is None:
        step = max(1, num_classes // NUM_DEFAULT_LABELS)
        return list(range(0, num_classes, step))[:NUM_DEFAULT_LABELS] if labels else list(PROMPTS)
    lines = prompt_lines(path)
    return labels_of(lines, pipe, path) if labels else lines


def prompt_lines(path: str) -> list[str]:
    """Return the lines of a file, stripped; empty lines may stand at its end alone.

    Lines end in a line feed or carriage return, and in no other character that Unicode takes for a line's end.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, not UTF-8, or has an empty line before others.

    """
    if not _is_file(path):
        raise FileNotFoundError(f"no prompt file at {shown(path, 300)}; write one prompt (or class label) a line")
    try:
        text = Path(path).read_text(encoding="utf-8").removeprefix("\ufeff").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not text:
        raise ValueError(f"the prompt file {path} is empty; write one prompt (or class label) a line")
    lines = [line.strip() for line in text.split("\n")]
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} of the prompt file {path} is empty; remove it")
    return lines


def _is_file(path: str) -> bool:
    """Return whether a text is the path of a file; of one that is too long for a path pathlib raises an error."""
    try:
        return Path(path).is_file()
    except OSError:
        return False
