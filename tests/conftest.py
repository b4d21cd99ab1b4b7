"""Tiny networks and graphs that all tests share."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import l2c
from l2c.diffusion import make_solver, schedule_of
from l2c.io.torchvision_stand_in import make_importable

make_importable()  # tests import diffusers and Lightning themselves
torch.set_num_threads(1)
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))  # tiny models and pipelines are made there
# A folder of weights that the developer keeps must not decide a test.
os.environ.pop("L2C_CHECKPOINTS", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--soak`: the tests of `tests/soak` at their whole length (hours) instead of seconds."""
    parser.addoption("--soak", action="store_true", help="run the tests of tests/soak at their whole length")


@pytest.fixture(scope="session")
def times(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """Return the function that chooses how often something is done: in the suite, and with `--soak`; 0 skips."""

    def choose(in_suite: int, in_soak: int) -> int:
        count = in_soak if pytestconfig.getoption("--soak") else in_suite
        if not count:
            pytest.skip("a part of make soak alone")
        return count

    return choose


def randomised(kind: type[nn.Module], seed: int, arguments: dict[str, object]) -> nn.Module:
    """Build a network with all weights off their start: zero gates and outputs would hide what is cached."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        network = kind(**arguments)
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_dit() -> Callable[..., l2c.DiT]:
    """Return a maker of tiny DiTs: 8 x 8 inputs, 16 tokens, no two weights alike."""

    def make(depth: int = 2, seed: int = 0, **changes: object) -> l2c.DiT:
        args = {"input_size": 8, "in_channels": 4, "hidden_size": 32, "num_heads": 2, "num_classes": 5}
        return randomised(l2c.DiT, seed, {"depth": depth, **args, **changes})

    return make


@pytest.fixture(scope="session")
def make_uvit() -> Callable[..., l2c.UViT]:
    """Return a maker of tiny U-ViTs: 8 x 8 inputs, 16 patches, `depth + 1` blocks."""

    def make(depth: int = 2, seed: int = 0, **changes: object) -> l2c.UViT:
        args = {"img_size": 8, "in_chans": 4, "embed_dim": 32, "num_heads": 2, "num_classes": 6}
        return randomised(l2c.UViT, seed, {"depth": depth, **args, **changes})

    return make


@pytest.fixture(params=["dit", "uvit"])
def backbone(request: pytest.FixtureRequest, make_dit: Callable, make_uvit: Callable) -> nn.Module:
    """Each kind of backbone in turn, made anew for every test."""
    return make_dit() if request.param == "dit" else make_uvit()


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a maker of inputs (x, t, y) for a tiny backbone; the last label is the null one."""

    def make(backbone: nn.Module, count: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((count, *backbone.input_shape), generator=generator)
        t = torch.linspace(1.0, 900.5, count)
        y = torch.arange(count) % 5
        y[-1] = 5
        return x, t, y

    return make


@pytest.fixture
def often() -> Iterator[None]:
    """Let threads take turns every few microseconds, so that shared state shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def layers_of() -> Callable[[nn.Module], list[nn.Module]]:
    """Return the function that lists the attention and MLP modules in the order of a row."""
    return lambda backbone: [backbone.get_submodule(name) for name in backbone.layer_names]


@pytest.fixture(scope="session")
def random_rows() -> Callable[..., tuple[tuple[bool, ...], ...]]:
    """Return a maker of random rows whose first computes everything."""

    def make(num_evaluations: int, num_layers: int, seed: int = 0, fresh: float = 0.5) -> tuple:
        draws = np.random.default_rng(seed).random((num_evaluations, num_layers)) < fresh
        draws[0] = True
        return tuple(tuple(bool(bit) for bit in row) for row in draws)

    return make


@pytest.fixture(scope="session")
def make_graph(random_rows: Callable) -> Callable[..., l2c.CacheGraph]:
    """Return a maker of graphs that fit a backbone and a solver."""

    def make(
        backbone: nn.Module,
        solver: str | None = None,
        num_evaluations: int = 6,
        rows: Sequence[Sequence[bool]] | None = None,
        **changes: object,
    ) -> l2c.CacheGraph:
        conventions = backbone.conventions
        solver = solver or ("ddim" if conventions.guidance == "dit" else "dpm_solver_2s")
        schedule = schedule_of(conventions)
        return l2c.CacheGraph(
            **{
                "rows": rows or random_rows(num_evaluations, backbone.num_layers),
                "layers": backbone.layer_names,
                "timesteps": make_solver(solver, schedule, num_evaluations).timesteps,
                "model": conventions.name,
                "solver": solver,
                "guidance": conventions.guidance,
                **changes,
            }
        )

    return make


@pytest.fixture(scope="session")
def reference() -> Path:
    """Return the folder of reference data, which lies beside the checkout and is not part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}: it is not part of the repository")
    return folder


@dataclass(frozen=True)
class Called:
    """What a call of a command left: its exit code, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make a folder the current one within."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def call() -> Callable[..., Called]:
    """Return the function that calls an entry, `train_router.py model=...`, as a user does but in this process.

    Each call has its own arguments, environment, output and Hydra, and starts in the root of the checkout.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    root = Path(__file__).resolve().parent.parent

    def run(entry: str, *arguments: object, cwd: Path = root, **environment: str) -> Called:
        output, errors = io.StringIO(), io.StringIO()
        logger, threads = logging.getLogger(), torch.get_num_threads()
        kept = (sys.argv, logger.handlers[:], logger.level, dict(os.environ), random.getstate(), sys.path[:])
        sys.argv = [str(root / entry), *map(str, arguments)]
        os.environ.update(environment)
        code: object = 0
        try:
            with (
                working_in(cwd),
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(errors),
                torch.random.fork_rng(devices=[]),
            ):
                runpy.run_path(str(root / entry), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.argv, logger.handlers[:], level, variables, state, sys.path[:] = kept
            logger.setLevel(level)
            os.environ.clear()
            os.environ.update(variables)
            random.setstate(state)
            torch.set_num_threads(threads)
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        if isinstance(code, str):  # sys.exit("a sentence")
            errors.write(f"{code}\n")
        return Called(code if isinstance(code, int) else int(code is not None), output.getvalue(), errors.getvalue())

    return run


@pytest.fixture(scope="session")
def command(call: Callable[..., Called]) -> Callable[..., Called]:
    """Return the function that calls `l2c NAME ...` in this process, from a folder; see `call`."""

    def run(name: str, *arguments: object, cwd: Path) -> Called:
        return call("l2c/__main__.py", name, *arguments, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def call_process() -> Callable[..., subprocess.CompletedProcess]:
    """Return the function that calls an entry in a process of its own, from any folder; see `call`."""
    root = Path(__file__).resolve().parent.parent

    def run(*arguments: object, cwd: Path = root, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **environment},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def refused() -> Callable[[Called | subprocess.CompletedProcess], str]:
    """Return the function that takes the one sentence from a refusal."""

    def sentence(result: Called | subprocess.CompletedProcess) -> str:
        assert result.returncode == 1, result.stderr
        lines = [line for line in result.stderr.splitlines() if line.strip() and "it/s]" not in line]  # no bars
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        return lines[0]

    return sentence


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random text-to-image pipeline, as `save_pretrained` writes it."""
    for package in ("diffusers", "transformers"):
        pytest.importorskip(package, reason=f"needs the package {package}: pip install '.[diffusers]'")
    from tiny_diffusers import attentive_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attentive_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_emoji() -> Callable[[Path], None]:
    """Return the function that writes random pictures into a folder, in the form of the emoji's file.

    There are ten families of six in ten classes; four pictures of each are in skin tones.
    """

    def write(folder: Path) -> None:
        labels = np.arange(60) % 10
        images = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
        np.savez(folder / "emoji_32.npz", images=images, labels=labels, families=labels, toned=np.arange(60) >= 20)

    return write


@pytest.fixture
def quick_acceleration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `l2c.accelerate` calibrate on one trajectory without responses, and keep things in a folder of the test."""
    from l2c.pipelines import acceleration

    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(acceleration, "AUTO", ("block_caching",))
    monkeypatch.setitem(acceleration.accelerate.__wrapped__.__kwdefaults__, "num_trajectories", 1)
