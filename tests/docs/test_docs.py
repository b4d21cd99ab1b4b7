"""Every command and every Python block of README and docs: it runs, or where it needs other data its settings fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import FEW_EVALUATIONS, PAGES, ROOT, SMALL, blocks, commands, indented, linear_graph
from hydra import compose, initialize_config_dir

from l2c.commands.frame.settings import checked
from l2c.commands.frame.table import COMMANDS
from l2c.graph.binding import GUIDANCES
from l2c.io.bundled import project_folder

RUN_WHOLE = (  # their commands run, one after the other, in one folder
    "README.md",
    "docs/tour.md",
    "docs/training.md",
    "docs/policies.md",
    "docs/pipelines.md",
    "docs/testbeds.md",
)
OTHER_DATA = "needs other data"
BEST = [
    "policy.num_trajectories=4",
    "policy.pool=4",
    "policy.steps=1",
    "policy.batch_size=2",
    "policy.max_span=3",
    "policy.whole_outputs=false",
]
BUDCACHE = ["policy.num_trajectories=2", "policy.steps=1", "policy.climbs=1"]
FEW_METHODS = "only=[gram,block_caching,fewer_steps]"


def small(call: list[str]) -> list[str]:
    """Return a call with the settings that make it short, those that the page gives itself coming last."""
    name, *given = call
    extra = list(SMALL.get(name, []))
    if "policy=best" in given:
        extra += BEST
    if "policy=budcache" in given:
        extra += BUDCACHE
    if name == "compare" and not any(word.startswith("only=") for word in given):
        extra.append(FEW_METHODS)
    calibrates = name == "calibrate" or any(word.startswith("calibration=") for word in given)
    if calibrates and not any(word.startswith("solver.num_evaluations=") for word in given):
        extra.append(FEW_EVALUATIONS)
    if name == "train-backbone" and any(word.startswith("max_steps=") for word in given):
        extra = [override for override in extra if not override.startswith("max_steps")]
    if "labels=" in " ".join(given):
        extra = [override for override in extra if not override.startswith("num_images")]
    fixed = [
        override for override in given if not override.startswith(("num_images=", "num_trajectories=", "trainer.max"))
    ]
    return [name, *fixed, *extra]


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def calls_of(page: Path) -> list[tuple[list[str], bool]]:
    """Return the calls of a page, and whether each is to run."""
    found = [
        (call, relative(page) in RUN_WHOLE and block.mark != OTHER_DATA)
        for block in blocks(page)
        if block.language in ("", "bash", "sh")
        for call in commands(block.text)
    ]
    whole = relative(page) in RUN_WHOLE
    return found + [(call, whole) for line in indented(page) for call in commands(line)]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_run_or_have_settings_that_fit(page, command, placed, tmp_path):
    for call, runs in calls_of(page):
        name, *overrides = placed(relative(page), call) if runs else call
        assert name in COMMANDS, f"{relative(page)}: l2c {name} is no command"
        if not COMMANDS[name].hydra:
            if name == "show" and runs:
                assert command(name, *overrides, cwd=tmp_path).returncode == 0, call
            continue
        sweeps = "-m" in overrides or "--cfg" in overrides
        if runs and not sweeps:
            done = command(*small([name, *overrides]), cwd=tmp_path)
        else:
            plain = [word for word in overrides if word not in ("-m", "--cfg", "job")]
            plain = [word.split(",")[0] if sweeps and "[" not in word else word for word in plain]
            with initialize_config_dir(str(project_folder("configs")), version_base="1.3"):
                cfg = compose(COMMANDS[name].module, plain)
            checked(COMMANDS[name].module, cfg)
            continue
        assert done.returncode == 0, f"{relative(page)}: l2c {' '.join(call)}: {done.stderr[-600:]}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))], ids=relative
)
def test_python_blocks_run(page, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks(page):
        if block.language != "python" or block.mark == OTHER_DATA:
            continue
        if block.mark:
            namespace |= given(block.mark)
        text = re.sub(r"^num_images = \d+$", "num_images = 2", block.text, flags=re.MULTILINE)
        text = re.sub(r"num_inference_steps=\d+", "num_inference_steps=4", text)
        exec(compile(text, f"{relative(page)}", "exec"), namespace)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{relative(page)} links to {target}"


def test_the_file_format_names_every_guidance():
    page = (ROOT / "docs" / "file_format.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", page[page.index("| mode |") :], re.MULTILINE)
    assert tuple(named) == GUIDANCES


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_programs_of_the_checkout_exist(page):
    for name in re.findall(
        r"^(?:python|torchrun|bash) (?:-\S+ \S+ )*((?:benchmarks|scripts)/\S+)", page.read_text(), re.MULTILINE
    ):
        assert (ROOT / name).is_file(), f"{relative(page)}: there is no {name}"


def next_calls(printed: str) -> list[list[str]]:
    lines = [line.removeprefix("next: ") for line in printed.splitlines() if line.startswith("next: ")]
    return [call for line in lines for call in commands(re.sub(r"^python -m l2c", "l2c", line))]


def test_next_lines_of_other_commands_work_when_pasted(command, tmp_path):
    """What `calibrate` says makes a graph; what that says evaluates it; so for images and corrections."""
    for begin in (
        ["calibrate", "output=calibration.safetensors"],
        ["sample-many", "model=dit_digits", "num_images=200", "hydra.run.dir=many"],
        ["correct", f"graph={linear_graph(tmp_path)}", "max_steps=1", "batch_size=2"],
    ):
        done, told = command(*small(begin), cwd=tmp_path), 0
        calls = next_calls(done.stdout)
        while calls:
            (call,) = calls
            done, told = command(*small(call), cwd=tmp_path), told + 1
            assert done.returncode == 0, f"{call}: {done.stderr[-600:]}"
            calls = next_calls(done.stdout)
        assert told, f"{begin} names no next command: {done.stdout[-600:]}{done.stderr[-600:]}"


def test_next_lines_work_when_pasted(command, tmp_path):
    folder = tmp_path / "a run, with = and spaces"
    first = command(
        "train",
        "trainer.max_steps=60",
        "router.init=0.0",
        "router.penalty=0.02",
        f"hydra.run.dir='{folder}'",
        cwd=tmp_path,
    )
    assert first.returncode == 0, first.stderr
    calls = next_calls(first.stdout)
    assert calls
    for call in calls:
        done = command(*small(call), cwd=tmp_path)
        assert done.returncode == 0, f"{call}: {done.stderr[-600:]}"
