"""`benchmarks/gpu.sh` where Python has torch and numpy alone, with the packages that another machine packed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from benchmarks.gpu import packages

ROOT = Path(__file__).resolve().parents[2]


def of_torch():
    """Return the files and folders of torch, of numpy and of what torch depends on."""
    parse = packages._requirement_type()
    todo, seen = ["torch", "numpy"], set()
    while todo:
        name = packages.normal(todo.pop())
        if name in seen or name == "setuptools":
            continue
        seen.add(name)
        found = distribution(name)
        todo += [r.name for r in map(parse, found.requires or ()) if packages._applies(r, frozenset())]
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            yield Path(str(found.locate_file(top)))


def test_all_parts_run_where_torch_is_alone(times, tmp_path, counted):
    times(0, 1)
    assert packages.pack(tmp_path / "wheels") == 0
    site = tmp_path / "site"
    site.mkdir()
    for path in of_torch():
        (site / path.name).symlink_to(path)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    given = (
        "--wheels",
        tmp_path / "wheels",
        "--tiny",
        "--device",
        "cpu",
        "--minutes",
        "20",
        "--output",
        tmp_path / "out",
    )
    done = subprocess.run(
        ["sh", ROOT / "benchmarks" / "gpu.sh", *map(str, given)],
        env={"PYTHON": str(python), "PYTHONPATH": str(site), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    reached = {name: (part["status"], part["reason"]) for name, part in content["parts"].items()}
    counted(parts=len(reached))
    assert set(reached.values()) == {("done", None)}, reached
