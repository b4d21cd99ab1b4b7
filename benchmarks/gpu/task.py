"""What a part of the measurement is given, and how it gives back what it measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from l2c.report.machine import machine
from l2c.sampling.execution.precision import DTYPES
from l2c.speed.latency import Latency, seconds_of

Value = str | int | float | bool | None


class LeftOut(Exception):
    """A part, or one of its variants, cannot be measured here; the message says why."""


class OutOfTime(Exception):
    """A part's time is over before all was measured; the message says what is missing."""


@dataclass(frozen=True)
class Task:
    """One part's share of the measurement.

    Attributes:
        device: where to measure.
        tiny: whether sizes are those of a rehearsal, which shows that a part runs and says nothing of speed.
        router: a published router of DiT-XL/2 at 50 evaluations, as a SmoothCache schedule; None = its counts.
        deadline: time (`time.monotonic`) after which nothing new is begun.
        send: takes the name of a table and one line of it.

    """

    device: torch.device
    tiny: bool
    router: Path | None
    deadline: float
    send: Callable[[str, dict[str, Value]], None]

    @property
    def in_time(self) -> bool:
        """Whether there is time to begin something."""
        return time.monotonic() < self.deadline

    def begin(self) -> None:
        """Go on only if there is time to begin something.

        Raises:
            OutOfTime: there is none.

        """
        if not self.in_time:
            raise OutOfTime("its time was over before all was measured")

    @property
    def precision(self) -> str:
        """The precision of the network: bf16, and fp16 on a card that has no such instructions."""
        return "bf16" if self.device.type != "cuda" or _since_ampere(self.device) else "fp16"

    @property
    def dtype(self) -> torch.dtype:
        """The type of `precision`."""
        return DTYPES[self.precision]

    @property
    def published_precision(self) -> str:
        """What the published code computes in: TF32, which on a card without it is fp32."""
        return "tf32" if self.device.type != "cuda" or _since_ampere(self.device) else "fp32"

    @property
    def machine(self) -> str:
        """The machine, and what it lacks."""
        lacks = "" if self.precision == "bf16" else "; it has neither bf16 nor TF32, so fp16 and fp32 stand for them"
        return machine(self.device) + lacks

    @property
    def rounds(self) -> int:
        """Alternated repetitions of what takes seconds at most."""
        return 2 if self.tiny else 5

    def reset_memory(self) -> None:
        """Begin to watch the device's memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> float | None:
        """Return the most memory allocated since `reset_memory`, in MB; None where there is no device's memory."""
        return torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else None

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the seconds of one call, with all that it leaves to do on the device."""
        return seconds_of(call)


def _since_ampere(device: torch.device) -> bool:
    """Return whether a card computes in bf16 and TF32; torch emulates bf16 on older ones, slowly."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def lacking_module(error: BaseException | None) -> str | None:
    """Return which module that belongs to no part of this project an error is about; None where it is about none.

    Packages that import their own parts late (diffusers, transformers) raise errors of their own from it.
    """
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    if error is None or not error.name:
        return None
    package, _, inner = error.name.partition(".")
    if package in ("l2c", "benchmarks"):
        return None
    if inner:
        return f"the installed {package} has no module {error.name}"
    return f"the package {package} is not installed"


def told(ratio: tuple[float, float, float]) -> str:
    """Return a ratio and its quartiles in words."""
    return "{:.3f} ({:.3f} .. {:.3f})".format(*ratio)


def against(latency: Latency, other: Latency) -> str:
    """Return the time of one variant over another's, from rounds timed in turn, with quartiles."""
    return told(other.ratio(latency))


def device_of(name: str | None) -> torch.device:
    """Return a device by its name; None = CUDA.

    Raises:
        LeftOut: there is none.

    """
    wanted = name or "cuda"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise LeftOut("there is no CUDA device here; rehearse with --tiny --device cpu")
    device = torch.device(wanted)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device
