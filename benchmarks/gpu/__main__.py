"""Measure what a CUDA device gives, in order of worth, within a number of minutes.

    sh benchmarks/gpu.sh --output runs/gpu

Each part runs in a process and a time of its own; what fails, or lacks a package, is recorded with its reason and
the others go on. results.json and results.md are written anew with every figure, so that nothing is lost with the
machine; a second run into the same folder measures what is not done yet.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.packages import HELP, PACKAGES, absent, pack, unpack
from benchmarks.gpu.parts import PARTS, Settings

MINUTES = 8.0  # with starting up it stays under 9
BARE = """A machine that has torch and lacks the rest takes it from another one with the same Python: there
sh benchmarks/gpu.sh --pack DIR, here --wheels DIR. It needs no pip here, and no network."""


def main() -> int:
    """Measure; return 1 where a part failed or nothing was measured."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as site:
        try:
            return pack(options.pack) if options.pack else _measure(options, Path(site))
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")


def _measure(options: argparse.Namespace, site: Path) -> int:
    """Measure what is asked for and not done before."""
    if not 0 < options.minutes < 24 * 60:
        raise ValueError(f"--minutes must be a number above 0, got {options.minutes:g}")
    if options.router is not None and not options.router.is_file():
        raise ValueError(f"no router at {options.router}; give a SmoothCache schedule of DiT-XL/2 at 50 evaluations")
    known = [part.name for part in PARTS]
    wanted = options.parts.split(",") if options.parts else known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"there is no part {unknown[0]!r}; --parts takes some of {', '.join(known)}, joined by commas"
        )
    if options.wheels is not None:
        print(f"took {unpack(options.wheels, site)} packages from {options.wheels}")
    lacking = absent()
    try:  # these take seconds, which a mistyped option need not wait for
        from benchmarks.gpu.processes import run_parts
        from benchmarks.gpu.report import Report
    except ModuleNotFoundError as error:
        listed = error.name in [PACKAGES[name] for name in lacking]
        names = lacking if listed else [str(error.name), *lacking]
        raise ValueError(f"not installed here: {', '.join(names)}; {HELP}") from error
    if lacking:
        print(f"not installed here, and what needs it is left out: {', '.join(lacking)}", flush=True)
    command = " ".join(["sh benchmarks/gpu.sh", *sys.argv[1:]])
    report = Report(options.output, command=command, names=known, tiny=options.tiny)
    todo = [part for part in PARTS if part.name in wanted and (options.again or report.status(part.name) != "done")]
    for name in [name for name in wanted if name not in [part.name for part in todo]]:
        print(f"{name}: done before; --again repeats it")
    settings = Settings(options.device, options.tiny, options.router)
    statuses = run_parts(todo, settings, report, minutes=options.minutes)
    print(f"wrote {options.output / 'results.json'} and {options.output / 'results.md'}")
    if not any(report.lines(name) for name in wanted):
        raise ValueError("nothing was measured; the reason of each part stands above")
    return int("failed" in statuses)


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
    made.add_argument("--again", action="store_true", help="repeat what the folder has already; default: go on")
    made.add_argument("--minutes", type=float, default=MINUTES, help=f"for all parts together (default {MINUTES})")
    made.add_argument("--parts", help="names joined by commas (default: all)")
    made.add_argument("--device", help="cuda, cuda:1, cpu (default cuda)")
    made.add_argument("--tiny", action="store_true", help="rehearse with tiny networks; says nothing of speed")
    made.add_argument("--router", type=Path, help="SmoothCache schedule to use for DiT-XL/2 at 50 evaluations")
    made.add_argument("--pack", type=Path, metavar="DIR", help="write wheels of what this needs there, and end")
    made.add_argument("--wheels", type=Path, metavar="DIR", help="take packages that are missing here from there")
    return made


if __name__ == "__main__":
    sys.exit(main())
