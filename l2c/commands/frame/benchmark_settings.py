"""Settings of single benchmarks; `commands.frame.settings` checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from l2c.commands.frame.command_settings import (
    COUNT,
    MATMULS,
    PRECISIONS,
    CommandSettings,
    count,
    optional_text,
    scale,
)
from l2c.graph.checks import MAX_EVALUATIONS
from l2c.io.settings import Flag, Items, Number, Table, Text, flag, number, ruled, text
from l2c.sampling.solver_settings import LARGEST_SCALE
from l2c.training.settings import THREADS

MODES = ("eager", "compiled", "captured", "compiled+captured")


@dataclass(frozen=True)
class Benchmark(CommandSettings):
    """benchmark."""

    DOING: ClassVar[str] = "timing a graph"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_sizes", "cache_dtype=bf16", "cache_device=cpu")

    checkpoint: str | None = text("random", optional=True)
    graph: str | None = optional_text()
    computed: Any = ruled(Items(item=Number(whole=True, at_least=0), optional=True), None)
    keep: float = number(0.5, at_least=0, at_most=1)
    cfg_scale: float | None = scale()
    batch_sizes: Any = ruled(Items(item=COUNT), [1])
    precision: Any = ruled(Items(item=Text(choices=PRECISIONS)), ["fp32"])
    matmul: Any = ruled(Items(item=Text(choices=MATMULS)), ["default"])
    mode: Any = ruled(Items(item=Text(choices=MODES)), ["eager"])
    baseline: str | None = optional_text(choices=("published",))
    cache_dtype: str | None = optional_text(choices=PRECISIONS)
    cache_device: str | None = optional_text()
    repetitions: int = count(5)
    by_evaluation: bool | None = ruled(Flag(optional=True), None)
    device: str | None = optional_text()
    num_threads: int | None = count(at_most=THREADS)


@dataclass(frozen=True)
class BenchmarkDiffusers(CommandSettings):
    """benchmarks/diffusers_caches.py."""

    DOING: ClassVar[str] = "timing the caches of pipelines"
    LOWERS: ClassVar[tuple[str, ...]] = ("num_labels", "size=tiny")

    size: str = text("tiny", choices=("tiny", "xl"))
    steps: int = count(5, at_most=MAX_EVALUATIONS)
    num_labels: int = count(1)
    guidance_scale: float = number(1.0, at_least=0, at_most=LARGEST_SCALE)
    compare: Any = ruled(Items(item=Text()), ["overhead"])
    repetitions: int = count(5)
    num_threads: int | None = count(at_most=THREADS)


@dataclass(frozen=True)
class BenchmarkScale(CommandSettings):
    """benchmarks/scale.py."""

    DOING: ClassVar[str] = "timing networks of many sizes"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_sizes", "tokens", "depth")

    batch_sizes: Any = ruled(Items(item=COUNT), [1])
    tokens: Any = ruled(Items(item=COUNT), [64])
    depth: Any = ruled(Items(item=COUNT), [6])
    num_evaluations: Any = ruled(Items(item=Number(whole=True, at_least=1, at_most=MAX_EVALUATIONS)), [10])
    centre: Any = ruled(Table(item=COUNT, names=("batch_size", "tokens", "depth", "num_evaluations")), {})
    hidden_size: int = count(384)
    repetitions: int = count(3)
    device: str | None = optional_text()
    precision: str | None = optional_text(choices=PRECISIONS)
    num_threads: int | None = count(at_most=THREADS)


@dataclass(frozen=True)
class BenchmarkTraining(CommandSettings):
    """benchmarks/router_training.py."""

    DOING: ClassVar[str] = "timing training steps"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size",)

    checkpoint: str | None = text("random", optional=True)
    batch_size: int = count(2)
    repetitions: int = count(5)
    schemes: Any = ruled(Items(item=Text()), ["published"])
    device: str | None = optional_text()
    precision: str = text("32-true", choices=("32-true", "bf16-mixed"))
    num_threads: int | None = count(at_most=THREADS)
    cpu_time: bool = flag(False)
    memory: bool = flag(True)
    child: str | None = optional_text()
