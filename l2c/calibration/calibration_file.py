"""The head of a calibration's file: JSON beside the tensors, read with bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.digest import weights_digest
from l2c.calibration.cost import Cost
from l2c.calibration.grid import Grid
from l2c.calibration.settings import MOST_BETWEEN, check_settings
from l2c.diffusion import Schedule
from l2c.diffusion.schedule import FLOW, FlowSchedule, NoiseSchedule, named_or_betas
from l2c.graph.binding import Binding
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.checks import MAX_EVALUATIONS
from l2c.graph.given import plain_table, table
from l2c.io.digests import digest_of_text
from l2c.io.json_fields import CALIBRATION, items, known_fields, member, parse
from l2c.io.names import quoted
from l2c.io.numbers import finite_number, whole_number
from l2c.io.tensors import is_plain

FORMAT = CALIBRATION
VERSION = 2
CORRECTIONS = ("corrections", "output_corrections", "both_corrections")
FIELDS = ("format", "version", "binding", "settings", "grid", "schedule", "cost", *CORRECTIONS, "digest")
OF_BINDING = tuple(Binding.__dataclass_fields__)
OF_SCHEDULE = ("name", "first_timestep", "num_steps", "prediction", "given")
CORRECTION = ("num_evaluations", "share", "predicted", "true")  # share of the MACs; mean squared errors per pixel
NUMBER = (int, float)
TEXT = (str, type(None))
OF_OUTPUT = "output_"  # tensors of the whole output as one layer begin so
PAIRS = (("responses", "responses_ahead"), ("output_responses", "output_responses_ahead"))
TO_BETWEEN = "_between"  # tensors of responses to outputs between evaluations end so
DIMENSIONS = {
    "layer_change": 3,
    "block_change": 3,
    **{f"{name}{end}": 4 for pair in PAIRS for name in pair for end in ("", TO_BETWEEN)},
}
NEEDED = (*((ahead, name) for name, ahead in PAIRS), *zip(PAIRS[1], PAIRS[0], strict=True))  # the second by the first
MOST = 1000  # corrections, ages
MOST_MACS = 10**18
LARGEST = 1e12  # of a number of a tensor: squares of sums of such are 32-bit floats
SHARES = 1e-9, 1 + 1e-6  # of the MACs, of corrections
ERRORS = 1e-60, 1e60  # mean squared errors of corrections
FLOATS = (torch.float16, torch.float32, torch.float64)  # which numpy has too


def header_of(
    *,
    tensors: Mapping[str, Tensor],
    binding: Binding,
    settings: Mapping[str, Any],
    grid: Grid | None,
    schedule: Schedule | None,
    cost: Cost | None,
    corrections: Sequence[Mapping[str, float]],
    output_corrections: Sequence[Mapping[str, float]],
    both_corrections: Sequence[Mapping[str, float]],
) -> str:
    """Return the head as text; the arguments are the attributes of `Calibration`.

    Raises:
        ValueError: if JSON cannot hold the settings.

    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "binding": binding.fields,
        "settings": dict(settings),
        "grid": grid and grid.to_json(),
        "schedule": schedule
        and {name: value for name in OF_SCHEDULE if (value := getattr(schedule, name, ())) != ()},
        "cost": cost and {"layers": list(cost.layers), "fixed": cost.fixed},
        "corrections": list(map(dict, corrections)),
        "output_corrections": list(map(dict, output_corrections)),
        "both_corrections": list(map(dict, both_corrections)),
    }
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        return json.dumps({**content, "digest": _digest(text, tensors)}, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the settings of a calibration must be text, finite numbers, lists and dicts: {error}"
        ) from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a file's head without its digest, and of its tensors."""
    return digest_of_text(f"{text}{weights_digest(tensors)}")


def check_digest(header: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a head and tensors that differ from their digest; older files without a digest are accepted.

    Raises:
        ValueError: if the digest in the head is another one.

    """
    content = parse(header)
    digest = content.pop("digest", None)
    if digest is not None and digest != _digest(json.dumps(content, ensure_ascii=False), tensors):
        raise ValueError("its content is not what was written; copy the file again, or run l2c calibrate again")


def fields_of(header: str) -> dict[str, Any]:
    """Return the content of a head, as arguments of `Calibration`.

    Raises:
        ValueError: if the head is damaged, of another version, or has missing, unknown or wrong fields.

    """
    content = parse(header)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("holds no calibration of l2c; give what l2c calibrate wrote")
    if content.get("version") != VERSION:
        raise ValueError(
            f"the calibration is of version {quoted(content.get('version', 1))}, this package reads version "
            f"{VERSION}; run l2c calibrate again"
        )
    known_fields(content, FIELDS)
    grid = member(content, "grid", (dict, type(None)))
    binding = _binding(member(content, "binding", dict))
    count = binding.num_evaluations
    content = {**{name: [] for name in CORRECTIONS[1:]}, **content}
    corrections = {
        name: tuple(_correction(one, i, count, name) for i, one in enumerate(member(content, name, list)))
        for name in CORRECTIONS
    }
    return {
        "binding": binding,
        "settings": member(content, "settings", dict),
        "grid": None if grid is None else Grid.from_json(grid, "grid"),
        "schedule": _schedule(member(content, "schedule", (dict, type(None)))),
        "cost": _cost(member(content, "cost", (dict, type(None)))),
        **corrections,
    }


def _binding(content: Mapping[str, Any]) -> Binding:
    known_fields(content, OF_BINDING, "binding")
    options = member(content, "solver_options", dict, "binding.solver_options")
    scale = member(content, "cfg_scale", (*NUMBER, type(None)), "binding.cfg_scale")
    return Binding(
        model=member(content, "model", str, "binding.model"),
        layers=tuple(items(content, "layers", str, "binding.layers")),
        solver=member(content, "solver", str, "binding.solver"),
        timesteps=tuple(map(float, items(content, "timesteps", NUMBER, "binding.timesteps"))),
        solver_options={name: finite_number(f"binding.solver_options.{name}", options[name]) for name in options},
        guidance=member(content, "guidance", TEXT, "binding.guidance"),
        cfg_scale=None if scale is None else float(scale),
        guidance_options=plain_table("binding.guidance_options", content.get("guidance_options", {})),
        fingerprint=member(content, "fingerprint", TEXT, "binding.fingerprint"),
    )


def _schedule(content: Mapping[str, Any] | None) -> Schedule | None:
    if content is None:
        return None
    known_fields(content, OF_SCHEDULE, "schedule")
    name = member(content, "name", str, "schedule.name")
    first = whole_number("schedule.first_timestep", content.get("first_timestep"), low=0, high=1000)
    count = whole_number("schedule.num_steps", content.get("num_steps"), low=2, high=100_000)
    prediction = member(content, "prediction", str, "schedule.prediction")
    if name == FLOW:
        return FlowSchedule(name, first, count, prediction)
    betas = named_or_betas(content["given"]) if "given" in content else ()
    if isinstance(betas, str):
        raise ValueError("schedule.given must be a list of numbers, got text; run l2c calibrate again")
    return NoiseSchedule(name, first, count, prediction, betas)


def _cost(content: Mapping[str, Any] | None) -> Cost | None:
    if content is None:
        return None
    known_fields(content, ("layers", "fixed"), "cost")
    layers = items(content, "layers", int, "cost.layers")
    return Cost(
        tuple(whole_number("a layer's MACs in cost.layers", macs, low=1, high=MOST_MACS) for macs in layers),
        whole_number("cost.fixed", content.get("fixed"), low=0, high=MOST_MACS),
    )


def _correction(content: Any, index: int, num_evaluations: int, name: str) -> Mapping[str, float]:
    """Return a correction; one that does not say its number of evaluations is of those measured."""
    where = f"{name}[{index}]"
    if not isinstance(content, Mapping) or index >= MOST:
        raise ValueError(f"{where} must be an object, and one of at most {MOST}, got {quoted(content, 40)}")
    content = {"num_evaluations": num_evaluations, **content}
    known_fields(content, CORRECTION, where)
    found: dict[str, float] = {
        CORRECTION[0]: whole_number(f"{where}.num_evaluations", content[CORRECTION[0]], low=1, high=MAX_EVALUATIONS)
    }
    for field in CORRECTION[1:]:
        low, high = SHARES if field == "share" else ERRORS
        found[field] = finite_number(f"{where}.{field}", content.get(field), low=low, high=high)
    return found


def check_content(
    tensors: Mapping[str, Tensor],
    *,
    binding: Binding,
    settings: Mapping[str, Any],
    grid: Grid | None,
    cost: Cost | None,
    corrections: Mapping[str, Sequence[Mapping[str, float]]],
    whole: bool,
) -> None:
    """Refuse parts of a calibration that are wrong, or do not fit each other; see the attributes of `Calibration`.

    Args:
        tensors: by name.
        binding: what was measured.
        settings: how it was measured.
        grid: None = the responses belong to their times alone.
        cost: None = not known.
        corrections: by name of their kind, see `CORRECTIONS`.
        whole: every number was measured; of responses that were carried some are NaN, for out of reach.

    Raises:
        ValueError: if one is of another type, out of range or not finite, or two contradict each other.

    """
    if not isinstance(binding, Binding):
        raise ValueError(
            f"the binding of a calibration must be a Binding, got {quoted(binding)}; graph.binding is one"
        )
    CacheGraph.blank(binding)  # has the rules for names, times and options
    for name, content in corrections.items():
        for index, one in enumerate(content):
            _correction(one, index, binding.num_evaluations, name)
    for name, tensor in table("the tensors of a calibration", tensors).items():
        _check_tensor(name, tensor, binding, whole=whole)
    _check_together(tensors)
    check_settings(settings, {name: tuple(tensor.shape) for name, tensor in tensors.items()} if whole else {})
    if grid is not None and grid.timesteps != binding.timesteps:
        raise ValueError("the timesteps of grid and binding differ, must be the same; run l2c calibrate again")
    if cost is not None and len(cost.layers) != len(binding.layers):
        raise ValueError(
            f"cost has {len(cost.layers)} layers, but the file is of {len(binding.layers)}; run l2c calibrate again"
        )


def _check_tensor(name: str, tensor: Tensor, binding: Binding, *, whole: bool) -> None:
    num_evaluations, num_layers = binding.num_evaluations, len(binding.layers)
    if name not in DIMENSIONS:
        raise ValueError(
            f"the tensor {quoted(name)} is unknown; known are {', '.join(DIMENSIONS)}; run l2c calibrate again"
        )
    if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS or not is_plain(tensor):
        got = f"one of {tensor.dtype}" if isinstance(tensor, Tensor) else quoted(tensor)
        raise ValueError(
            f"{name} must be a plain tensor of 32-bit floats (or of 16 or 64 bits), got {got}; give tensor.float(), "
            "or run l2c calibrate again"
        )
    shape = tuple(tensor.shape)
    most = max(MOST, num_evaluations) * (MOST_BETWEEN if name.endswith(TO_BETWEEN) else 1)
    if len(shape) != DIMENSIONS[name] or 0 in shape or max(shape[:1] + shape[2:3]) > most:
        raise ValueError(
            f"{name} must have {DIMENSIONS[name]} dimensions of sensible size, got {shape}; run l2c calibrate again"
        )
    found = shape[1:3] if name.endswith("change") else shape[:2]
    wanted = num_evaluations, 1 if name.startswith(OF_OUTPUT) else num_layers
    if found != wanted and (name != "block_change" or found[0] != num_evaluations):
        raise ValueError(
            f"{name} has {found} evaluations and layers, but the file is of {wanted}; run l2c calibrate again"
        )
    low, high = map(float, tensor.aminmax())
    if whole and not -LARGEST <= low <= high <= LARGEST:
        raise ValueError(
            f"{name} holds numbers that are not finite, or larger than {LARGEST:g}; run l2c calibrate again"
        )


def _check_together(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that lack the one beside them, or differ from it in their directions."""
    for name, other in NEEDED:
        if name in tensors and other not in tensors:
            raise ValueError(f"{name} needs {other} beside it, which is missing; run l2c calibrate again")
    for names in PAIRS:
        pair = [tensors[name].shape for name in names if name in tensors]
        if len(pair) == 2 and pair[0][3] != pair[1][3]:
            raise ValueError(
                f"{' and '.join(names)} are of {pair[0][3]} and {pair[1][3]} directions, must be equal; run l2c "
                "calibrate again"
            )
        _check_between(names, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def _check_between(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse responses to outputs between evaluations that do not fit those to evaluations, by name."""
    between = [f"{name}{TO_BETWEEN}" for name in names]
    if not any(name in shapes for name in between):
        return
    found = [shapes.get(name) for name in (*names, *between)]
    if all(found):
        older, younger, *others = [shape for shape in found if shape]
        per, rest = divmod(others[0][2], older[2])
        if not rest and others == [(*shape[:2], per * shape[2], older[3]) for shape in (older, younger)]:
            return
    got = ", ".join(f"{name} {shapes.get(name, 'missing')}" for name in (*names, *between))
    raise ValueError(
        f"{' and '.join(between)} must both be there, with as many outputs between two evaluations for each of "
        f"{' and '.join(names)}, got {got}; run l2c calibrate again"
    )
