"""Measure what a CUDA device gives, in order of worth, within a number of minutes.

    sh benchmarks/gpu.sh --output runs/gpu

Each part runs in a process and a time of its own; what fails, or lacks a package, is recorded with its reason and
the others go on. results.json and results.md are written anew with every figure, so that nothing is lost with the
machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.parts import PARTS, Settings

MINUTES = 8.0  # with starting up it stays under 9
BARE = """For a machine that lacks packages and has no network: call sh benchmarks/gpu.sh --pack DIR on another
one, with the same Python, copy DIR over, and give --wheels DIR as the first option here."""


def main() -> int:
    """Measure; return 1 where a part failed."""
    options = parser().parse_args()
    if not 0 < options.minutes < 24 * 60:
        sys.exit(f"error: --minutes must be a number above 0, got {options.minutes:g}")
    if options.router is not None and not options.router.is_file():
        sys.exit(f"error: no router at {options.router}; give a SmoothCache schedule of DiT-XL/2 at 50 evaluations")
    wanted = options.parts.split(",") if options.parts else [part.name for part in PARTS]
    unknown = [name for name in wanted if name not in [part.name for part in PARTS]]
    if unknown:
        known = ", ".join(part.name for part in PARTS)
        sys.exit(f"error: there is no part {unknown[0]!r}; --parts takes some of {known}, joined by commas")
    parts = [part for part in PARTS if part.name in wanted]
    import l2c  # noqa: F401  before timm and Lightning: it makes a mismatched torchvision importable
    from benchmarks.gpu.processes import run_parts  # these take seconds, which a mistyped option need not wait for
    from benchmarks.gpu.report import Report

    command = " ".join(["sh benchmarks/gpu.sh", *sys.argv[1:]])
    report = Report(options.output, command=command, names=[part.name for part in parts], tiny=options.tiny)
    run_parts(parts, Settings(options.device, options.tiny, options.router), report, minutes=options.minutes)
    print(f"wrote {options.output / 'results.json'} and {options.output / 'results.md'}")
    return int(any(report.status(part.name) == "failed" for part in parts))


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    listed = "\n".join(f"  {part.name:<12} {part.does}" for part in PARTS)
    made = argparse.ArgumentParser(
        prog="sh benchmarks/gpu.sh",
        description=__doc__,
        epilog=f"parts, in order:\n{listed}\n\n{BARE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of results (default runs/gpu)")
    made.add_argument("--minutes", type=float, default=MINUTES, help=f"for all parts together (default {MINUTES})")
    made.add_argument("--parts", help="names joined by commas (default: all)")
    made.add_argument("--device", help="cuda, cuda:1, cpu (default cuda)")
    made.add_argument("--tiny", action="store_true", help="rehearse with tiny networks; says nothing of speed")
    made.add_argument("--router", type=Path, help="SmoothCache schedule to use for DiT-XL/2 at 50 evaluations")
    return made


if __name__ == "__main__":
    sys.exit(main())
