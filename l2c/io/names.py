"""Names in messages: shown safely, and compared with those that a user may have meant."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

FEW = 6  # names that are listed whole
SHOWN = 80  # characters of a stranger's text that a message repeats
Function = TypeVar("Function", bound=Callable[..., Any])
# Words of this package and of others for one thing: where one is unknown, another that is known is meant.
SYNONYMS = (
    ("num_evaluations", "num_inference_steps", "num_steps", "steps", "n_steps", "sampling_steps", "nfe"),
    ("cfg_scale", "guidance_scale", "true_cfg_scale", "cfg", "guidance", "scale"),
    ("budget", "target", "speedup", "speed_up"),
    ("solver", "scheduler"),
    ("precision", "dtype", "torch_dtype"),
)


def near_names(name: str, known: list[str], prefix: str = "") -> str:
    """Say which known names are near to an unknown one, each with a prefix such as `router.`."""
    near = [each for words in SYNONYMS if name in words for each in words if each in known]
    if not near:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near.sort(key=lambda each: sorted(each) != sorted(name))  # letters that changed places come first
    shown_names = [f"{prefix}{each}" for each in near or known]
    return f"did you mean {' or '.join(shown_names)}?" if near else f"known are {', '.join(shown_names)}"


def chosen(what: str, name: object, known: Iterable[str]) -> str:
    """Return a name that is one of those known.

    Args:
        what: what the name is of, `solver`.
        name: what was given.
        known: the allowed names.

    Raises:
        ValueError: if it is none of them; the message names the near ones of many, all of a few.

    """
    allowed = list(known)
    if not isinstance(name, str) or name not in allowed:
        near = near_names(name if isinstance(name, str) and len(allowed) > FEW else "", allowed)
        raise ValueError(f"unknown {what} {quoted(name)}; {near}")
    return name


def near_keywords(hint: str = "") -> Callable[[Function], Function]:
    """Let a function that is called with an argument that it does not have name the near ones, by a TypeError.

    Args:
        hint: what the message says beside.

    """

    def decorate(function: Function) -> Function:
        known = [name for name in inspect.signature(function).parameters if name != "self"]
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            unknown = next((word for word in given if word not in known), None)
            if unknown is not None:
                near = near_names(unknown, known)
                raise TypeError(f"{name} has no argument {quoted(unknown)}; {near}{hint and '; '}{hint}")
            return function(*args, **given)

        return call  # type: ignore[return-value]

    return decorate


@contextmanager
def folder_or_hub(what: str, name: str) -> Iterator[None]:
    """Refuse what is neither a folder nor a name on the Hub that can be read in the `with` block, in one sentence.

    Args:
        what: what is looked for, `pipeline`.
        name: the folder or the name.

    Raises:
        FileNotFoundError: if there is no such folder, and nothing of that name is to be had from the Hub.

    """
    mend = f"give the {what} as a folder that save_pretrained wrote, or as a name on the Hub (OWNER/NAME)"
    if Path(name).is_dir():
        yield
        return
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise FileNotFoundError(f"there is no folder {shown(name, 300)}; {mend}")
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"there is no folder {shown(name, 300)} here, and the Hub gives no {what} of that name; {mend}"
        ) from error


def shown(value: object, limit: int = SHOWN) -> str:
    """Return text, or what another value prints as, for a message: one short line without control characters.

    Args:
        value: anything; text that others wrote (names in files, for one) above all.
        limit: characters that are kept; the rest becomes `...`.

    """
    text = str(value)
    cut = text[:limit] + ("..." if len(text) > limit else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def quoted(value: object, limit: int = SHOWN) -> str:
    """Return a value as Python writes it (text in quotes), for a message: one short line, see `shown`."""
    if isinstance(value, str):
        return f"{value[:limit]!r}" + ("..." if len(value) > limit else "")
    return shown(repr(value) if isinstance(value, (int, float, bool, type(None))) else type(value).__name__, limit)


def listed(values: Iterable[object], count: int = 8) -> str:
    """Return the first values of many in brackets, for a message."""
    values = list(values)
    return f"[{', '.join(map(shown, values[:count]))}{', ...' if len(values) > count else ''}]"


def counted(count: int, noun: str) -> str:
    """Return a number and a noun, with an s (or es after one) unless the number is 1."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def as_text(value: Any) -> str:
    """Return a value as a command takes it: `3e-3`, `true`, `null`, `[a,b]`."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{value:g}").replace("e+", "e")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"[{','.join(map(as_text, value))}]"
    return str(value)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return which settings differ, for a message: the first three, as `seed is 0 there, 1 here`; empty for none."""
    differing = []
    for name in {**here, **there}:
        if name not in there or name not in here or there[name] != here[name]:
            texts = [shown(as_text(side[name])) if name in side else "not set" for side in (there, here)]
            if texts[0] == texts[1]:  # of numbers that differ in their last digits
                texts = [shown(repr(side.get(name))) for side in (there, here)]
            differing.append(f"{shown(name)} is {texts[0]} there, {texts[1]} here")
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f"{', '.join(differing[:3])}{more}"
