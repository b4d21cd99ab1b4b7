"""Statistics of a backbone under a sampler, measured once and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import replacing

FORMAT = "l2c-calibration"
HOW = {
    "layer_change": "run `l2c calibrate` and pass its file as statistics=PATH",
    "block_change": "run `l2c calibrate` and pass its file as statistics=PATH",
    "responses": "run `l2c calibrate measure=[responses]` and pass its file as statistics=PATH",
}


@dataclass(frozen=True)
class Calibration:
    """Measured tensors and the graph-like head that says what they are valid for.

    Attributes:
        tensors: `layer_change` (K, E, L) and `block_change` (K, E, B): mean relative L1 change against the output
            1..K evaluations before; `responses` (E, L, A, M): see `measure_responses`.
        head: model, fingerprint, solver, its options, timesteps, guidance and scale.
        settings: how it was measured: seed, number of trajectories.

    """

    tensors: Mapping[str, Tensor]
    head: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name.

        Raises:
            ValueError: it was not measured; the message says how to.

        """
        if name not in self.tensors:
            raise ValueError(f"the statistics hold {', '.join(self.tensors) or 'nothing'} but no {name}; {HOW[name]}")
        return self.tensors[name]

    def check(self, graph: CacheGraph) -> None:
        """Refuse statistics of another model or sampler than a graph is to be made for.

        Raises:
            ValueError: they differ; the message says in what.

        """
        for what, wanted in head_of(graph).items():
            got = self.head.get(what)
            if got != wanted:
                shown = f"{_short(got)}, but the graph is to be made for {_short(wanted)}"
                raise ValueError(
                    f"the statistics were made for {what.replace('_', ' ')} {shown}; run l2c calibrate with "
                    "the same model and solver, or take the statistics that belong to them"
                )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with a JSON header; it appears whole or not at all."""
        header = json.dumps({"format": FORMAT, "head": dict(self.head), "settings": dict(self.settings)})
        with replacing(path) as temporary:
            save_file({k: v.contiguous() for k, v in self.tensors.items()}, temporary, metadata={"l2c": header})

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds no statistics.

        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no statistics at {path}; l2c calibrate writes them")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["l2c"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no statistics of l2c; give what l2c calibrate wrote") from error
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} holds no statistics of l2c; give what l2c calibrate wrote")
        return cls(tensors, header["head"], header["settings"])


def head_of(graph: CacheGraph) -> dict[str, Any]:
    """Return what statistics must share with a graph, as JSON keeps it; see `Binding.head`."""
    return graph.binding.head


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} evaluations from t = {value[0]:g} to {value[-1]:g}"
    text = str(value)
    return text if len(text) < 40 else f"{text[:19]}..."
