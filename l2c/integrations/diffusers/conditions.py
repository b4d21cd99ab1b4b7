"""Arguments of a pipeline's model other than noisy input and timestep, for each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.backbone import weights_digest


@dataclass(frozen=True)
class PerPrompt:
    """A condition with one row per prompt.

    Attributes:
        rows: (P, ...); a tuple of P tensors (1, ...) where prompts differ in length.
        listed: whether the model takes a list with an entry a prompt; then rows is the tuple of these.

    """

    rows: Any
    listed: bool = False


def tabled(values: Sequence[Any]) -> Any:
    """Return conditions of single prompts as one table; what has no row of its own is the first prompt's."""
    head = values[0]
    if isinstance(head, Mapping):
        return {key: tabled([value[key] for value in values]) for key in head}
    if isinstance(head, list) and len(head) == 1:  # one entry a prompt
        return PerPrompt(tuple(value[0] for value in values), listed=True)
    if not isinstance(head, Tensor) or head.ndim == 0 or len(head) != 1:
        return head
    alike = len({tuple(value.shape) for value in values}) == 1
    return PerPrompt(torch.cat(list(values)) if alike else tuple(values))


def rows_of(table: Any, y: Tensor) -> Any:
    """Return the conditions of prompts y (N,).

    Raises:
        ValueError: if one batch holds prompts of different lengths.

    """
    if isinstance(table, Mapping):
        return {key: rows_of(value, y) for key, value in table.items()}
    if not isinstance(table, PerPrompt):
        return table.to(y.device) if isinstance(table, Tensor) else table
    if isinstance(table.rows, Tensor):
        return table.rows.to(y.device)[y]
    chosen = [table.rows[prompt] for prompt in y.tolist()]
    chosen = [row.to(y.device) if isinstance(row, Tensor) else row for row in chosen]
    if table.listed:
        return chosen
    shapes = sorted({tuple(row.shape) for row in chosen})
    if len(shapes) > 1:
        raise ValueError(
            f"prompts of different lengths cannot run in one batch: their conditions have shapes {shapes[0]} and "
            f"{shapes[-1]}; sample one prompt at a time (batch_size=1) and without a guidance scale, or let the "
            "pipeline pad them (options)"
        )
    return torch.cat(chosen)


def differ_in_length(table: Any) -> bool:
    """Return whether some condition has another shape for some prompt."""
    if isinstance(table, Mapping):
        return any(map(differ_in_length, table.values()))
    return isinstance(table, PerPrompt) and not table.listed and not isinstance(table.rows, Tensor)


def digest_of(table: Any) -> str:
    """Return a digest of conditions."""
    if isinstance(table, Mapping):
        return str({key: digest_of(value) for key, value in table.items()})
    if isinstance(table, PerPrompt):
        table = table.rows
    if isinstance(table, (list, tuple)):
        return str([digest_of(member) for member in table])
    return weights_digest({"": table}) if isinstance(table, Tensor) else str(table)
