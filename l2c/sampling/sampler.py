"""Images from noise: a backbone, a solver, guidance, and optionally a cache graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone, fingerprint
from l2c.backbones.layer_cache import BlockCall
from l2c.diffusion import Guidance, NoiseSchedule, Solver, make_solver
from l2c.graph.cache_graph import CacheGraph
from l2c.io.seeds import ImageNoise, draw_normal
from l2c.sampling.correction import Correction
from l2c.sampling.denoiser import Denoiser, lifetimes_for
from l2c.sampling.precision import dtype_of, in_precision, matmul_setting, matmuls
from l2c.sampling.runner import Runner, cache_explained
from l2c.sampling.store import LayerStore

TIMESTEP_TOLERANCE = 5e-3  # in units of t of 1000; 32-bit solvers of other packages differ by 2e-4


def seeded_noise(shape: tuple[int, ...], seed: int, count: int, *, first: int = 0) -> Tensor:
    """Return noise (count, *shape) on the CPU; image `first + i` always gets the same, however it is batched."""
    images = [draw_normal(shape, "start of a trajectory", seed, i) for i in range(first, first + count)]
    return torch.stack(images) if images else torch.empty(0, *shape)


class Sampler:
    """Draw images with a backbone; with a graph, skip the layers that it says to skip.

    Args:
        backbone: a frozen network.
        graph: a cache graph; it brings solver, evaluations, timesteps and guidance. Refused where it does not
            fit the backbone, its weights, or what else is given here.
        solver: `ddim`, `ddpm`, `dpm_solver_2s` or `dpm_solver_2m`; required without a graph.
        num_evaluations: number of calls of the backbone; required without a graph.
        cfg_scale: guidance scale in the convention of the backbone's publication (DiT: 1.0 = off, U-ViT: 0.0 =
            off); None = the graph's, and off where it has none.
        eta: stochasticity of DDIM in [0, 1]; None = the graph's, else 0.
        any_weights: accept a graph that was made for other weights of the same architecture (benchmarks).
        precision: `fp32`, `tf32`, `bf16` or `fp16`, of the network (a copy of it where it is in another one); the
            solver's arithmetic is in 32 bits always. None = as the backbone is.
        matmul: who multiplies 32-bit matrices on a CPU, `default` or `onednn`; see `sampling.precision`.
        cache_dtype: what cached outputs are kept in, e.g. `bf16` for half the memory; None = as computed.
        cache_device: where they are kept, e.g. `cpu` beside a GPU; None = where computed.

    Attributes:
        lifetimes: what the cache holds when; None without a graph.
        cache_dtype: what cached outputs are kept in; None = as computed.

    Raises:
        ValueError: the graph does not fit, or an argument is out of range; the message says how to mend it.

    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        graph: CacheGraph | None = None,
        solver: str | None = None,
        num_evaluations: int | None = None,
        cfg_scale: float | None = None,
        eta: float | None = None,
        any_weights: bool = False,
        precision: str | None = None,
        matmul: str = "default",
        cache_dtype: torch.dtype | str | None = None,
        cache_device: torch.device | str | None = None,
    ) -> None:
        conventions = backbone.conventions
        options: dict[str, float] = {}
        if graph is not None:
            _check_backbone(graph, backbone, any_weights=any_weights)
            solver = _agreed("solver", solver, graph.solver)
            num_evaluations = _agreed("num_evaluations", num_evaluations, graph.num_evaluations)
            if graph.cfg_scale is not None:
                cfg_scale = _agreed("cfg_scale", cfg_scale, graph.cfg_scale)
            if graph.guidance not in (None, conventions.guidance):
                raise ValueError(
                    f"the graph was made under guidance {graph.guidance!r}, but {conventions.name} uses "
                    f"{conventions.guidance!r}; take a graph of this backbone"
                )
            options = dict(graph.solver_options)
            if "eta" in options:
                eta = _agreed("eta", eta, options["eta"])
        if solver is None or num_evaluations is None:
            raise ValueError("a sampler needs a graph, or solver and num_evaluations (e.g. solver='ddim', 20)")
        if eta is not None:
            options["eta"] = eta
        self.graph = graph
        self.solver = solver_for(backbone, solver, num_evaluations, **options)
        self.guidance = Guidance(conventions.guidance, cfg_scale)
        if self.guidance.active and conventions.null_label is None:
            raise ValueError(
                f"cfg_scale={cfg_scale} needs an unconditional label, but {conventions.name} has none; "
                "leave cfg_scale out"
            )
        if graph is not None:
            _check_timesteps(graph, self.solver.timesteps)
        self._correction = None if graph is None else Correction.of(graph)  # refuses a file that does not belong
        self.backbone = in_precision(backbone, precision)
        self.lifetimes = None if graph is None else lifetimes_for(backbone, graph)
        self._products = precision, matmul
        self._matmuls: dict[str, str | None] = {}  # by kind of device
        self.matmul_on(next(self.backbone.parameters()).device)  # refuses an unknown one
        self.cache_dtype = dtype_of(cache_dtype, "cache_dtype")
        self._store = LayerStore(self.cache_dtype, cache_device)
        self._runner = Runner()

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The t that the backbone is given at each evaluation, noisiest first."""
        return self.solver.timesteps

    @property
    def matmul(self) -> str | None:
        """Torch's setting of matrix products while this sampler runs; None = as it is."""
        return self.matmul_on(next(self.backbone.parameters()).device)

    def matmul_on(self, device: torch.device) -> str | None:
        """Return the same on another device, which the backbone may be moved to."""
        if device.type not in self._matmuls:
            self._matmuls[device.type] = matmul_setting(*self._products, device)
        return self._matmuls[device.type]

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor | Sequence[int] | None = None,
        *,
        noise: Tensor | None = None,
        seed: int | None = None,
        first_image: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Return images (N, C, H, W) in the backbone's own space (latents or pixels), as 32-bit floats.

        Args:
            labels: (N,) labels in 0..num_labels-1; None for a backbone without labels.
            noise: (N, C, H, W) standard normal noise to start from.
            seed: draws the noise instead, and what a stochastic solver adds: each image has streams of its own, so
                that it is the same however images are batched.
            first_image: number of the batch's first image among all images of the seed.
            progress: show a bar over the evaluations.

        Raises:
            ValueError: labels out of range, shapes that do not fit, or neither noise nor seed.
            MemoryError: out of memory; the message says what lowers it.

        """
        device = next(self.backbone.parameters()).device
        y = None if labels is None else torch.as_tensor(labels, device=device)
        count = _checked_count(self.backbone, y, noise)
        if noise is None:
            if seed is None:
                raise ValueError("give noise=(N, C, H, W), or seed=0 to have it drawn")
            noise = seeded_noise(self.backbone.input_shape, seed, count, first=first_image)
        x = noise.to(device, torch.float32)
        y = None if y is None else y.long()
        images = range(first_image, first_image + count)
        generator = None if seed is None else ImageNoise("noise of a stochastic solver", seed, images)
        with matmuls(self.matmul), cache_explained(count, self.cache_bytes(count)):
            return self._runner.run(
                self._trajectory,
                self.solver,
                x,
                y,
                generator,
                offloaded=self._store.device is not None,
                progress=progress,
            )

    def _trajectory(self, x: Tensor, y: Tensor | None, **options: Any) -> Tensor:
        """Return the images (N, C, H, W) that noise x (N, C, H, W) leads to."""
        return self.solver.sample(self.denoiser(y), x, **options)

    def denoiser(self, y: Tensor | None) -> Denoiser:
        """Return the executor of one trajectory for labels y (N,), as `sample` uses it."""
        return Denoiser(
            self.backbone,
            y,
            self.guidance,
            self.graph,
            timesteps=self.timesteps,
            lifetimes=self.lifetimes,
            correction=self._correction,
            store=self._store,
            call=self._runner.call,
        )

    @property
    def cache_peak_bytes(self) -> int:
        """The most memory that the cache has held in any trajectory so far, in bytes."""
        return self._store.peak_bytes

    @property
    def compiled(self) -> bool:
        """Whether the blocks run compiled."""
        return self._runner.compiled

    @property
    def captured(self) -> bool:
        """Whether trajectories are replayed as a CUDA graph, from the next batch on at the latest."""
        return self._runner.captured

    def cache_bytes(self, num_images: int) -> int:
        """Return the memory that the cache needs at its peak for a number of images, in bytes; 0 without a graph."""
        if self.lifetimes is None or self.backbone.layer_shape is None:
            return 0
        rows = self.guidance.rows(num_images)
        tokens, width = self.backbone.layer_shape
        dtype = self._store.dtype or next(self.backbone.parameters()).dtype
        return self.lifetimes.num_slots * rows * tokens * width * dtype.itemsize

    def compile(
        self, num_images: int = 1, *, backend: str | Callable[..., Any] = "inductor", progress: bool = True
    ) -> Sampler:
        """Compile the backbone's blocks for this sampler, with a batch of some images as a warm-up; return it.

        A compiler that fails is reported by one warning; the sampler goes on without it.

        Raises:
            MemoryError: the warm-up ran out of memory, as sampling so many images would.

        """
        rows = self.guidance.rows(num_images)
        with matmuls(self.matmul), cache_explained(num_images, self.cache_bytes(num_images)):
            self._runner.compile(self.backbone, self.graph, rows, backend=backend, progress=progress)
        return self

    def blocks_by(self, call: BlockCall) -> None:
        """Let blocks be run by a call of one's own, `call(block, *inputs, fresh, cached)`; see `Pass`."""
        self._runner.blocks_by(call)

    def capture(self) -> Sampler:
        """Let whole trajectories be replayed as one CUDA graph from the next batch on; return the sampler.

        Where that cannot be done, one warning says why and sampling goes on as before.
        """
        self._runner.capture()
        return self


T = TypeVar("T", str, int, float)


def solver_for(backbone: Backbone, name: str, num_evaluations: int, **options: float) -> Solver:
    """Return a solver on the backbone's noise schedule, or the one that a pipeline brings along.

    Raises:
        ValueError: an unknown name or option, or not the pipeline's.

    """
    own: Solver | None = getattr(backbone, "own_solver", None)
    if own is None:
        schedule = NoiseSchedule(backbone.conventions.schedule, backbone.conventions.first_timestep)
        return make_solver(name, schedule, num_evaluations, **options)
    fewer: Mapping[int, Solver] = getattr(backbone, "fewer_steps", {})
    own = fewer.get(num_evaluations, own)
    if name not in ("pipeline", own.name) or num_evaluations != own.num_evaluations:
        raise ValueError(
            f"the pipeline was read with {own.name} and {own.num_evaluations} steps, got {name} and "
            f"{num_evaluations}; read it again with those"
        )
    return own


def _agreed(what: str, given: T | None, of_graph: T) -> T:
    """Return the graph's value, refusing another one that was given beside it."""
    if given is not None and given != of_graph:
        raise ValueError(
            f"the graph was made for {what} {of_graph}, got {given}; leave {what} out, or make a graph for {given}"
        )
    return of_graph


def _check_backbone(graph: CacheGraph, backbone: Backbone, *, any_weights: bool) -> None:
    """Refuse a graph of another architecture or of other weights."""
    name = backbone.conventions.name
    if graph.layers != backbone.layer_names:
        raise ValueError(
            f"the graph was made for {graph.model} with {graph.num_layers} layers ({graph.layers[0]}, ...), but "
            f"{name} has {backbone.num_layers} ({backbone.layer_names[0]}, ...); take a graph of this backbone"
        )
    if any_weights:
        return
    mend = "take a graph made for these weights, or pass any_weights=True to use it all the same"
    if graph.fingerprint is not None:
        if graph.fingerprint != fingerprint(backbone):
            raise ValueError(
                f"the graph was made for other weights of {graph.model} ({graph.fingerprint[:19]}...) than those of "
                f"{name} ({fingerprint(backbone)[:19]}...); {mend}"
            )
    elif name not in (graph.model, type(backbone).__name__) and graph.model != type(backbone).__name__:
        raise ValueError(f"the graph was made for {graph.model}, but the backbone is {name}; {mend}")


def _check_timesteps(graph: CacheGraph, timesteps: tuple[float, ...]) -> None:
    """Refuse a graph whose evaluations lie at other times than the solver's."""
    for e, (wanted, got) in enumerate(zip(timesteps, graph.timesteps, strict=True)):
        if abs(wanted - got) > TIMESTEP_TOLERANCE:
            raise ValueError(
                f"the graph's evaluation {e} is at t = {got:g}, but {graph.solver} with {len(timesteps)} evaluations "
                f"takes it at t = {wanted:g}; make a graph for this solver's timesteps"
            )


def _checked_count(backbone: Backbone, y: Tensor | None, noise: Tensor | None) -> int:
    """Return the number of images, or refuse labels and noise that do not fit."""
    name, num_labels = backbone.conventions.name, backbone.num_labels
    if num_labels and y is None:
        raise ValueError(f"{name} needs labels: give (N,) integers in 0..{num_labels - 1}")
    if not num_labels and y is not None:
        raise ValueError(f"{name} has no labels; call sample(noise=...) without them")
    if y is not None:
        if y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
            raise ValueError(f"labels must be integers of shape (N,), got {y.dtype} of shape {tuple(y.shape)}")
        wrong = y[(y < 0) | (y >= num_labels)]
        if len(wrong):
            raise ValueError(f"label {int(wrong[0])} is out of range: {name} has the labels 0..{num_labels - 1}")
    if noise is not None:
        expected = (len(y) if y is not None else noise.shape[0], *backbone.input_shape)
        if tuple(noise.shape) != expected:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but {name} with these labels takes {expected}; "
                "give one noise image per label"
            )
        return noise.shape[0]
    if y is None:
        raise ValueError(f"{name} has no labels, so the number of images comes from noise=(N, C, H, W)")
    return len(y)
