"""Try cache graphs on every transformer and U-Net class of diffusers, at tiny size, and write what holds as a table.

    python benchmarks/coverage.py [CLASS or PIPELINE ...] [--output docs/coverage.md]

Of some classes or pipelines alone, the others' rows in the tables stay.

For each class: a graph that computes everything must equal the plain model bit for bit; reuse under equal inputs must
equal computing; the forwards that really run must be those of the rows; a second call must equal the first; removing
the graph must restore the model bit for bit; and two guidance branches that run in turn must equal each run alone.
Configurations are in tiny_models.yaml. Whole pipelines are those of tiny_pipelines.py and tiny_variants.py;
whole_pipelines.py says what is checked. All took 12.6 minutes of one core (2026-11-27); ConsisID wants OpenCV.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import whole_pipelines
from tiny_models import CONFIGURATIONS, LEFT_OUT, TIMES, TinyModel, configurations, moved_on, tiny_model
from tiny_pipelines import STEPS, WITHOUT, makers
from torch import Tensor, nn

import l2c
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.io.torchvision_stand_in import make_importable

make_importable()  # diffusers and transformers import torchvision

KINDS = {"layer graph": None, "block graph": ("block",), "output graph": (WHOLE_OUTPUT,)}
PLACE = 6  # of the pipelines in the row of a class
TOLERANCE = 1e-5  # relative: adding and subtracting a block's input rounds


def graph_of(tiny: TinyModel, layers: tuple[str, ...], rows: list[tuple[bool, ...]]) -> l2c.CacheGraph:
    """Return a graph of layers and rows for a tiny model."""
    name = type(tiny.model).__name__
    return l2c.CacheGraph(
        rows=tuple(rows), layers=layers, timesteps=tiny.timesteps, model=name, solver="DDIMScheduler"
    )


def mixed_rows(num_layers: int) -> list[tuple[bool, ...]]:
    """Return rows in which about half of the layers are reused, each in several patterns."""
    return [tuple(e == 0 or (e * 7 + i * 5) % 4 < 2 for i in range(num_layers)) for e in range(len(TIMES))]


@contextlib.contextmanager
def counted(model: nn.Module, layers: tuple[str, ...]) -> Iterator[dict[str, list[int]]]:
    """Count the forwards of each module with weights inside each layer; hooks come around these, not under them."""
    counts: dict[str, list[int]] = {}
    counting = []
    for path in dict.fromkeys(name.partition("@")[0] for name in layers):
        layer = model if path == WHOLE_OUTPUT else model.get_submodule(path)
        inner = [part for part in layer.modules() if hasattr(part, "weight")]
        counts[path] = [0] * len(inner)
        for place, part in enumerate(inner):

            def count(*args: Any, to: Any = (counts[path], place), forward: Any = part.forward, **kwargs: Any) -> Any:
                to[0][to[1]] += 1
                return forward(*args, **kwargs)

            part.__dict__["forward"] = count
            counting.append(part)
    try:
        yield counts
    finally:
        for module in counting:
            module.__dict__.pop("forward", None)


def relative_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference of two trajectories, in units of the largest value."""
    largest = max(float(output.abs().max()) for output in theirs)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / largest


def check(tiny: TinyModel, layers: tuple[str, ...]) -> None:
    """Apply graphs of these layers and compare with the plain model.

    Raises:
        ValueError: something is not as it must be; the message says what.

    """
    from l2c.integrations.diffusers import apply, remove

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(what)

    def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    plain = tiny.trajectory()
    need(same(plain, tiny.trajectory()), "the plain model is not deterministic")
    still = {tiny.noisy: tiny.inputs[tiny.noisy]}
    rows = mixed_rows(len(layers))
    everything = [(True,) * len(layers)] * len(TIMES)

    apply(tiny.model, graph_of(tiny, layers, everything))
    need(same(tiny.trajectory(), plain), "a graph that computes everything changes bits")
    remove(tiny.model)

    with counted(tiny.model, layers) as counts:
        tiny(tiny.timesteps[0])
        once = {path: list(ran) for path, ran in counts.items()}
        apply(tiny.model, graph_of(tiny, layers, rows))
        for ran in counts.values():
            ran[:] = [0] * len(ran)
        cached = tiny.trajectory()
        for path, ran in counts.items():
            columns = [i for i, name in enumerate(layers) if name.partition("@")[0] == path]
            wanted = sum(row[i] for row in rows for i in columns)
            # Some models also run a block's projection themselves.
            pairs = [pair for pair in zip(ran, once[path], strict=True) if pair[1] and pair[1] % len(columns) == 0]
            right = [count == wanted * each // len(columns) for count, each in pairs]
            need(not right or any(right), f"{path} ran {ran} times, not {wanted}")
        need(not same(cached, plain), "the graph changes nothing")
        need(same(tiny.trajectory(), cached), "a second call differs from the first")
        check_branches(tiny, cached)
        remove(tiny.model)
    need(same(tiny.trajectory(), plain), "the graph leaves traces when it is removed")

    t = tiny.timesteps[0]  # the same inputs at a time that hardly moves: reuse equals computing
    near = [t * (1 + 1e-9 * e) if tiny.rising else t * (1 - 1e-9 * e) for e in range(len(TIMES))]
    if t == 0:
        near = [1e-9 * e for e in range(len(TIMES))]
    graph = graph_of(tiny, layers, [everything[0], *[(False,) * len(layers)] * (len(TIMES) - 1)])
    apply(tiny.model, graph)
    for e, sooner in enumerate(tiny.timesteps):
        hook = tiny.model._diffusers_hook.get_hook("l2c_cache_graph")
        hook.schedule.evaluation = lambda _, e=e: e
        error = relative_error([tiny(near[e], **still)], [plain[0]])
        need(error < TOLERANCE, f"reuse under equal inputs differs from computing by {error:.0e} at {sooner:g}")
    remove(tiny.model)


def check_branches(tiny: TinyModel, alone: list[Tensor]) -> None:
    """Compare two guidance branches that run in turn, without names, with each alone."""
    conditions = [n for n, v in tiny.inputs.items() if n != tiny.noisy and isinstance(v, Tensor)]
    changed = next((n for n in conditions if tiny.inputs[n].is_floating_point()), None)
    if changed is None:
        return
    other = {changed: tiny.inputs[changed] * 0.5}
    expected = tiny.trajectory(**other)
    for e, t in enumerate(tiny.timesteps):
        x = {tiny.noisy: moved_on(tiny.inputs[tiny.noisy], e)}
        for branch, wanted in (({}, alone[e]), (other, expected[e])):
            if not torch.equal(tiny(t, **x, **branch), wanted):
                raise ValueError("guidance branches that run in turn disturb each other")


@dataclass
class Finding:
    """What holds for one class."""

    name: str
    layers: str = ""
    share: str = ""
    verdicts: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Row of the table."""
        notes = "; ".join(v.replace("|", "/") for v in self.verdicts.values() if v != "yes")
        marks = " | ".join("yes" if self.verdicts.get(kind) == "yes" else "no" for kind in KINDS)
        return f"| `{self.name}` | {self.layers} | {self.share} | {marks} |  | {notes} |"


def share_of(layers: list[Any], run: Any) -> str:
    """Return the share of a forward's MACs that layers hold, for people; unknown where the counter cannot tell."""
    from l2c.calibration.measured_cost import covered_share

    try:
        return f"{100 * covered_share(layers, run):.0f} %"
    except Exception:  # operations that the counter does not know, flex_attention for one
        return "?"


def runs_of(tiny: TinyModel) -> list[Callable[[], Tensor]]:
    """Return two runs of a model, at other times with other noisy inputs."""
    moved = {tiny.noisy: moved_on(tiny.inputs[tiny.noisy], 1)}
    return [functools.partial(tiny, tiny.timesteps[1]), functools.partial(tiny, tiny.timesteps[2], **moved)]


@torch.no_grad()
def examine(name: str) -> Finding:
    """Return what holds for a class."""
    from l2c.integrations.diffusers.layers import find_layers, make_layer
    from l2c.integrations.diffusers.recorded.moving import moving_calls

    finding = Finding(name)
    for kind, of in KINDS.items():
        try:
            tiny = tiny_model(name)
            layers = find_layers(tiny.model, of=of, calls=moving_calls(tiny.model, runs_of(tiny)))
            if of is None:
                shown = dict.fromkeys(re.sub(r"\.\d+", ".*", layer) for layer in layers)
                finding.layers = ", ".join(f"`{layer}`" for layer in shown)
            check(tiny, layers)
            finding.verdicts[kind] = "yes"
        except Exception as error:  # the table says what is refused, and why
            finding.verdicts[kind] = f"{kind}: {str(error).splitlines()[0][:200]}"
    if finding.layers:  # last: torch's counter leaves traces in compiled operations
        tiny = tiny_model(name)
        layers = find_layers(tiny.model, calls=moving_calls(tiny.model, runs_of(tiny)))
        finding.share = share_of([make_layer(tiny.model, layer) for layer in layers], runs_of(tiny)[0])
    return finding


HEAD = """# Classes of diffusers

Written by `python benchmarks/coverage.py` with diffusers {version}, on tiny configurations with random weights.

- *Layers* are those that `find_layers` finds; `@2` is the second call of a module.
- *Pipelines* are those of the second table that have the class and are right, or why there are none.
- *Share* is the share of the MACs of one forward that these layers hold. Below 80 % a graph saves less than its
  rows say; tiny configurations have large embedders.
- A *layer graph*, a *block graph* or an *output graph* (what the whole model returns is the one layer) is "yes" if
  an all-compute graph equals the plain model bit for bit, reuse under equal inputs equals computing, a second call
  equals the first, two guidance branches in turn equal each alone, and removal restores the model bit for bit.

Left out of the transformers and U-Nets that diffusers exports:

{left_out}

{counts}

| class | layers | share | layer graph | block graph | output graph | pipelines | refused, and why |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Examine classes and pipelines, print their rows, write the tables."""
    import diffusers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of classes or tiny pipelines; none = all")
    parser.add_argument("--output", type=Path, help="write the tables here, or these rows into them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    known: dict[str, Callable[[str], Finding | whole_pipelines.Outcome]] = {
        **dict.fromkeys(configurations(), examine),
        **dict.fromkeys(makers(), whole_pipelines.outcome_of),
    }
    unknown = [name for name in options.names if name not in known]
    if unknown:
        sys.exit(f"no configuration of {unknown[0]} in {CONFIGURATIONS.name}; known are {', '.join(known)}")
    rows = {} if options.output is None else written(options.output)
    for name in options.names or known:
        rows[name] = known[name](name).line
        print(rows[name], flush=True)
        if options.output is not None:  # after each: a run that is ended loses nothing
            options.output.write_text(tables(rows), encoding="utf-8")


def tables(rows: Mapping[str, str]) -> str:
    """Return the two tables of rows by class, or name of the pipeline, and how many are right."""
    import diffusers

    classes = [with_pipelines(name, rows) for name in configurations() if name in rows]
    pipelines = [rows[name] for name in makers() if name in rows]
    layer_graphs, block_graphs, output_graphs, right = (
        sum(row.split("|")[place].strip() == "yes" for row in table)
        for table, place in ((classes, 4), (classes, 5), (classes, 6), (pipelines, 3))
    )
    counts = (
        f"Of {len(classes)} classes layer graphs are right on {layer_graphs}, block graphs on {block_graphs}, output "
        f"graphs on {output_graphs}."
    )
    of_pipelines = f"Of {len(pipelines)} pipelines, {right} are right."
    shown = sum(not row.split(" | ")[PLACE].startswith("none") for row in classes)
    counts += f" {shown} are the denoisers of pipelines below that are right."
    left_out = "\n".join(f"- `{name}`: {reason}." for name, reason in LEFT_OUT.items())
    text = HEAD.format(version=diffusers.__version__, counts=counts, left_out=left_out) + "\n".join(classes) + "\n"
    return text + whole_pipelines.HEAD.format(steps=STEPS, counts=of_pipelines) + "\n".join(pipelines) + "\n"


def with_pipelines(name: str, rows: Mapping[str, str]) -> str:
    """Return the row of a class with the pipelines that have it and are right, or why there are none."""
    cells = {key: rows[key].split(" | ") for key in makers() if key in rows}
    right = [key for key, (_, denoiser, verdict, *_) in cells.items() if f"`{name}`" in denoiser and verdict == "yes"]
    more = f" and {len(right) - 1} more" if len(right) > 1 else ""
    row = rows[name].split(" | ")
    row[PLACE] = f"`{right[0]}`{more}" if right else f"none: {WITHOUT.get(name, 'not tried')}"
    return " | ".join(row)


def written(path: Path) -> dict[str, str]:
    """Return the rows of tables that were written before, by class, or name of the pipeline."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = (re.match(r"\| `(\w+)`(?: \((\w+)\))?", line) for line in lines)
    return {found[2] or found[1]: found.string for found in named if found is not None}


if __name__ == "__main__":
    main()
