"""How time and memory of a cached trajectory grow, and the linear model that predicts them.

python benchmarks/scale.py num_threads=2
"""

import sys
from dataclasses import replace

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from omegaconf import DictConfig

from l2c.commands.frame import entry as cli
from l2c.io.atomic import write_json, write_text
from l2c.report.figures import COMPUTED, save_figure
from l2c.report.machine import machine
from l2c.report.table import markdown_table
from l2c.sampling.execution.precision import dtype_of
from l2c.speed.scale import LinearModel, Size, TimedSize, measure

VARIED = {"batch_sizes": "batch_size", "tokens": "tokens", "depth": "depth", "num_evaluations": "num_evaluations"}


@cli.entry("benchmark_scale")
def main(cfg: DictConfig) -> None:
    """Measure, fit, report."""
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    dtype_of(cfg.precision)  # refuses an unknown one
    precision = cfg.precision or "fp32"
    sizes = _sizes(cfg)
    device = cli.device(cfg.device)
    measured = measure(sizes, repetitions=cfg.repetitions, device=device, precision=cfg.precision)
    model = LinearModel.fit(measured)
    folder = cli.run_folder()
    save_figure(_figure(measured, model), folder / "scale.png")
    command = " ".join(["python benchmarks/scale.py", *sys.argv[1:]])
    content = {
        "command": command,
        "machine": machine(device),
        "precision": precision,
        "coefficients": model.coefficients,
        "measured": [m.to_dict() for m in measured],
    }
    write_json(folder / "results.json", content)
    where = f"TimedSize in {precision} on {machine(device)} by `{command}`."
    text = f"{_table(measured, model)}\n\n{_sentence(model)}\n\n{where}\n"
    write_text(folder / "report.md", f"# Scale\n\n{text}\n![predicted and measured](scale.png)\n")
    print(f"{text}\nreport: {folder / 'report.md'}\npicture: {folder / 'scale.png'}")


def _sizes(cfg: DictConfig) -> list[Size]:
    """Return the centre and what differs from it in one thing."""
    centre = Size(**cfg.centre, hidden_size=cfg.hidden_size)
    sizes = [centre]
    for setting, name in VARIED.items():
        for value in cfg[setting]:
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{setting} must be a list of whole numbers from 1 on, got {list(cfg[setting])}")
            sizes.append(replace(centre, **{name: value}))
    return list(dict.fromkeys(sizes))


def _table(measured: list[TimedSize], model: LinearModel) -> str:
    header = ("batch", "tokens", "depth", "evaluations", "seconds", "predicted", "cache MB", "predicted MB")
    rows = [
        (
            str(m.size.batch_size),
            str(m.size.tokens),
            str(m.size.depth),
            str(m.size.num_evaluations),
            f"{m.seconds:.3f}",
            f"{model.seconds(m.terms):.3f}",
            f"{m.cache_bytes / 1e6:.2f}",
            f"{m.predicted_bytes / 1e6:.2f}",
        )
        for m in measured
    ]
    return markdown_table([header, *rows])


def _sentence(model: LinearModel) -> str:
    a, b, c = model.coefficients
    speed = f"{2 / a:.0f} GFLOP/s" if a else "no measurable time"
    return (
        f"seconds = GMACs x {a:.3g} + million numbers through computed layers x {b:.3g} + evaluations x {c:.3g}: "
        f"products run at {speed}. MACs count both branches, a number is one that computed layers put out."
    )


def _figure(measured: list[TimedSize], model: LinearModel) -> Figure:
    figure = Figure(figsize=(4.6, 4.4), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    seconds, predicted = [m.seconds for m in measured], [model.seconds(m.terms) for m in measured]
    ends = [min(seconds + predicted) * 0.8, max(seconds + predicted) * 1.25]
    axis.plot(ends, ends, color="0.7", linewidth=1)
    axis.loglog(predicted, seconds, "o", color=COMPUTED)
    for i, (m, x, y) in enumerate(sorted(zip(measured, predicted, seconds, strict=True), key=lambda entry: entry[2])):
        size = m.size
        label = f"{size.batch_size}/{size.tokens}/{size.depth}/{size.num_evaluations}"
        right = i % 2 == 0  # neighbours on both sides of the line
        shift = (6, -7 - i % 4) if right else (-6, 3 + i % 4)
        side = "left" if right else "right"
        axis.annotate(label, (x, y), xytext=shift, ha=side, textcoords="offset points", fontsize=6)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter(FormatStrFormatter("%g"))
        scale.set_minor_formatter(NullFormatter())
    axis.set_xlabel("seconds, linear model")
    axis.set_ylabel("seconds, measured")
    axis.set_title("batch / tokens / depth / evaluations", fontsize=9, loc="left")
    return figure


if __name__ == "__main__":
    main()
