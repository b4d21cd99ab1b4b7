"""What decides what a pipeline draws, as plain values: equal ones in every process, others for other contents.

Nothing in them depends on addresses, on the order of sets, or on where something was loaded from.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l2c.backbones.digest import weights_checksum
from l2c.integrations.diffusers.adapters import bare, effective_weights
from l2c.integrations.diffusers.denoisers import unwrapped
from l2c.integrations.diffusers.prompts import array_of, digest_of_array
from l2c.io.digests import digest_of_text
from l2c.io.names import quoted
from l2c.io.tensors import DEEPEST

NUMBERS = (bool, int, float)
ITS_OWN_TEXT = (PurePath, enum.Enum, complex, bytes, torch.dtype, torch.device, torch.Size)
OF_A_RUN = "training"  # is no setting: pipelines are calibrated in eval mode
OF_A_CALL = ("truncation", "padding")  # a tokenizer keeps those of its last call, and the sides that it set
OF_TOKENIZERS = ("model_max_length", "chat_template", "special_tokens_map")


def content_of(what: str, value: Any, depth: int = DEEPEST) -> Any:
    """Return what a value holds, for JSON; tensors and weights by their digest, objects by their attributes.

    Args:
        what: the setting that it belongs to, for the message.
        value: any value.
        depth: how deep members may lie.

    Raises:
        ValueError: if it is known by its address alone (a function that has no name, a handle), or nested too deep.

    """
    if value is None or isinstance(value, (str, *NUMBERS)):
        return value.item() if isinstance(value, np.generic) else value
    if depth == 0:
        raise ValueError(f"{what} holds members that lie {DEEPEST} levels deep, or in a circle; give it fewer")

    def inside(member: Any) -> Any:
        return content_of(what, member, depth - 1)

    if isinstance(value, Mapping):
        return {str(name): inside(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [inside(member) for member in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(inside, value), key=repr)
    if isinstance(value, ITS_OWN_TEXT):
        return str(value)
    if isinstance(value, np.generic):
        return inside(value.item())
    if isinstance(value, nn.Module) or _prepares(value):
        return part_content(what, value)
    array = array_of(value)
    if array is not None:
        return inside(array.tolist()) if array.dtype.hasobject else digest_of_array(array)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    held = _attributes(value)
    if held is None or callable(value):
        raise ValueError(
            f"{what} holds {quoted(type(value).__name__)}, which nothing tells from others of its kind in another "
            "process, so that what is calibrated with it could not be found again; give values, pictures or tensors"
        )
    return [inside(type(value)), inside(held)]


def part_content(what: str, part: Any) -> list[Any]:
    """Return what a part of a pipeline is: its class, its settings, and the weights of a module; see `content_of`."""
    content = [type(part).__name__, content_of(what, _settings_of(part))]
    if _prepares(part):
        content.append({name: part_content(what, member) for name, member in vars(part).items() if _prepares(member)})
    if isinstance(part, nn.Module):
        content += [weights_checksum(effective_weights(part)), numbers_in(part)]
    return content


def parts_beside(pipe: Any, models: Iterable[nn.Module]) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a pipeline by their names that have weights or settings, its denoisers aside."""
    denoisers = list(models)
    for name, part in vars(pipe).items():
        members = list(part.values() if isinstance(part, Mapping) else part) if _holds_modules(part) else [part]
        own = [member for member in members if isinstance(member, nn.Module)]
        if name.startswith("_") or (own and all(unwrapped(member) in denoisers for member in own)):
            continue
        if _holds_modules(part) or isinstance(part, nn.Module):
            yield name, part
        elif hasattr(part, "config") or _prepares(part):
            yield name, part_content(name, part)


def _holds_modules(part: Any) -> bool:
    members = part.values() if isinstance(part, Mapping) else part if isinstance(part, (list, tuple)) else ()
    return any(isinstance(member, nn.Module) for member in members)


def numbers_in(module: nn.Module, name: str = "") -> dict[str, Any]:
    """Return the numbers that modules hold as attributes (FreeU's scales), by their names, adapters left out."""
    module = bare(module)
    found = {
        f"{name}.{key}": value
        for key, value in vars(module).items()
        if isinstance(value, NUMBERS) and not key.startswith("_") and key != OF_A_RUN
    }
    for key, child in module.named_children():
        found |= numbers_in(child, f"{name}.{key}")
    return found


def _settings_of(part: Any) -> Any:
    """Return the settings of a pipeline or of a part of it, those aside that say where it was loaded from."""
    if hasattr(part, "get_vocab"):
        return _settings_of_tokenizer(part)
    config = part if _prepares(part) else getattr(part, "config", {})
    return _public(config.to_dict() if hasattr(config, "to_dict") else dict(config))


def _settings_of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return the settings of a tokenizer, its vocabulary and rules by a digest."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    kept = json.dumps({name: value for name, value in rules.items() if name not in OF_A_CALL}, sort_keys=True)
    own = {name: str(getattr(tokenizer, name, None)) for name in OF_TOKENIZERS}
    return {**own, "rules": digest_of_text(kept)}


def _prepares(part: Any) -> bool:
    """Return whether a part without weights makes a model's inputs: a tokenizer, or a processor of several kinds."""
    told = hasattr(part, "get_vocab") or (hasattr(part, "to_dict") and not hasattr(part, "config"))
    return told and callable(part) and not isinstance(part, (nn.Module, type))


def _public(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {name: _public(value) for name, value in settings.items() if not str(name).startswith("_")}


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object, those in slots too; None without any."""
    if isinstance(value, Tensor):
        return None
    slots = (name for kind in type(value).__mro__ for name in np.atleast_1d(getattr(kind, "__slots__", ())))
    held = {str(name): getattr(value, name) for name in slots if hasattr(value, str(name))}
    return {**held, **vars(value)} if hasattr(value, "__dict__") else held or None
