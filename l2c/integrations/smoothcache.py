"""Schedule files of SmoothCache (Roblox/SmoothCache) in and out.

JSON: `{"attn": [1, 0, ...], "mlp": [...]}` for all blocks, or one list per block, `"attn-0"`. 1 = compute;
index 0 = the first evaluation. Files for diffusers call the layers `attn1` and `ff`. A kind of layer that a file
does not name is always computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import ModelPreset
from l2c.backbones.shapes import backbone_shapes
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import each, takes
from l2c.graph.layer_names import kind_of
from l2c.graph.predictor import HOLD
from l2c.graph.statistics import made_by
from l2c.io.atomic import write_text
from l2c.io.bundled import at_home
from l2c.io.json_fields import parse_file
from l2c.io.names import listed, quoted, shown
from l2c.sampling.binding import binding_of, solver_for

KINDS = {"attn": 0, "attn1": 0, "mlp": 1, "ff": 1}
KEY = re.compile(r"(attn1?|mlp|ff)(?:-(\d+))?")


def import_smoothcache(
    path: str | Path,
    backbone: str | ModelPreset | Backbone,
    *,
    solver: str = "ddim",
    routed: Sequence[int] | str | None = None,
) -> CacheGraph:
    """Read a SmoothCache schedule as a cache graph; the lists' length is the number of evaluations.

    Args:
        path: the `.json` file.
        backbone: the backbone it was made for, its preset, or the name of that.
        solver: the solver it was made for.
        routed: evaluations that its method lets reuse: indices, `l2c` for those of Learning-to-Cache with DDIM
            (every second one, the last among them), or None for those that do.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no such schedule, or of another depth; the message says which key.

    """
    columns = _read(at_home(path))
    network = backbone if isinstance(backbone, Backbone) else backbone_shapes(backbone)
    conventions = network.conventions
    num_evaluations = len(next(iter(columns.values())))
    rows = [[True] * network.num_layers for _ in range(num_evaluations)]
    depth = network.num_layers // 2
    for (kind, block), bits in columns.items():
        if block is not None and block >= depth:
            raise ValueError(
                f"{path} names block {block}, but {conventions.name} has {depth} blocks (0..{depth - 1}); "
                "give the backbone that it was made for"
            )
        for b in range(depth) if block is None else (block,):
            for e, bit in enumerate(bits):
                rows[e][2 * b + kind] = bool(bit)
    named = {block for _, block in columns}
    if None not in named and len(named) != depth:
        raise ValueError(
            f"{path} names {len(named)} blocks, but {conventions.name} has {depth}; "
            "give the backbone that it was made for"
        )
    if routed is not None and not isinstance(routed, str):
        routed = tuple(each("routed", routed))
    if isinstance(routed, str):
        if routed != "l2c":
            raise ValueError(f"routed must be indices, 'l2c' or None, got {routed!r}")
        routed = [e for e in range(1, num_evaluations) if (num_evaluations - 1 - e) % 2 == 0]
    announced = solver_for(network, solver, num_evaluations)
    binding = binding_of(network, announced, weights_bound=network is backbone)
    return CacheGraph.blank(
        binding,
        rows=tuple(map(tuple, rows)),
        routed=None if routed is None else tuple(routed),
        provenance=made_by("smoothcache schedule", {}, imported_from=Path(path).name),
    )


@takes(graph=CacheGraph)
def export_smoothcache(graph: CacheGraph, path: str | Path) -> None:
    """Write a graph's rows as a SmoothCache schedule: `attn` and `mlp` where all blocks agree, else per block.

    The form has no place for solver, timesteps, guidance and fingerprint: whoever uses the file must know them.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if a schedule cannot express what the graph does.

    """
    forecast = next((reuse for reuse in graph.reuse if reuse != HOLD), None)
    if forecast is not None:
        raise ValueError(
            f"a SmoothCache schedule reuses outputs as they are, but this graph has reuse {forecast!r}; "
            "make one with reuse=hold"
        )
    other = next(
        (name for i, name in enumerate(graph.layers) if kind_of(name).startswith("attn") == bool(i % 2)), None
    )
    if other is not None:
        raise ValueError(
            f"a SmoothCache schedule has attention and MLP in turn, but this graph has the layer {shown(other)} in "
            "their place; it cannot be written in that form: keep the cache graph"
        )
    columns = [[int(row[i]) for row in graph.rows] for i in range(graph.num_layers)]
    alike = all(column == columns[i % 2] for i, column in enumerate(columns))
    kinds = ("attn", "mlp")
    schedule = (
        {kind: columns[i] for i, kind in enumerate(kinds)}
        if alike
        else {f"{kinds[i % 2]}-{i // 2}": column for i, column in enumerate(columns)}
    )
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(column)}" for key, column in schedule.items())
    write_text(path, "{\n" + lines + "\n}\n")


def is_smoothcache(path: str | Path) -> bool:
    """Return whether a file holds a SmoothCache schedule."""
    try:
        return bool(_read(Path(path)))
    except (OSError, ValueError):
        return False


def _read(path: Path) -> dict[tuple[int, int | None], list[int]]:
    """Return the lists by (0 attention or 1 MLP, block or None)."""
    if not path.exists():
        raise FileNotFoundError(f"no schedule at {path}; give the path of a SmoothCache .json file")
    content = parse_file(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path} holds no schedule: expected an object like {{'attn': [1, 0], 'mlp': [1, 1]}}; give a "
            "schedule's file"
        )
    columns: dict[tuple[int, int | None], list[int]] = {}
    for key, bits in content.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(
                f"{path} names an unknown layer {quoted(key)}; known are attn, mlp (attn1, ff) and attn-0, ..."
            )
        if not isinstance(bits, list) or not bits or any(bit not in (0, 1) for bit in bits):
            got = listed(bits) if isinstance(bits, list) else quoted(bits)
            raise ValueError(f"{path}: {key!r} must be a list of 1 (compute) and 0 (reuse), got {got}")
        columns[KINDS[match[1]], None if match[2] is None else int(match[2])] = bits
    lengths = {len(bits) for bits in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"{path}: lists of different lengths {sorted(lengths)}; give one entry per evaluation")
    return columns
