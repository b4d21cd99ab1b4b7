"""The machine that figures were measured on."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import torch

from l2c.io.names import counted


def machine(device: torch.device | None = None) -> str:
    """Describe the machine of a measurement, with its GPU if the device is one; None = the GPU if there is one."""
    capability = torch.backends.cpu.get_cpu_capability()
    processor = f"{_processor()} ({capability}), {counted(torch.get_num_threads(), 'thread')}"
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    where = f"{torch.cuda.get_device_name(device)}, {processor}" if on_gpu else processor
    return f"{where}, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    """Return the processor's name, as Linux knows it, else what Python says."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()
