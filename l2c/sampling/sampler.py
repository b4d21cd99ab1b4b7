"""Images from noise: a backbone, a solver, guidance, and optionally a cache graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.backbone import Backbone
from l2c.backbones.digest import weights_in
from l2c.backbones.dit import TimestepEmbedder
from l2c.backbones.forwards import INSIDE_COMPILED
from l2c.backbones.layer_cache import BlockCall
from l2c.backbones.whole_output import LayersAndOutput, under_layers
from l2c.diffusion import Solver
from l2c.graph.binding import check_noise, check_times
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import takes, text
from l2c.io.names import near_keywords, shown
from l2c.io.numbers import AT_ONCE, finite_number, truth_value, whole_number
from l2c.io.seeds import ImageNoise, draw_normal
from l2c.sampling.binding import agreed, checked_own, guidance_in_use, loaded, solver_for, tolerance_of, watch_of
from l2c.sampling.correction import Correction
from l2c.sampling.denoiser import Denoiser, lifetimes_for
from l2c.sampling.execution.precision import dtype_of, in_precision, matmul_setting, own_arithmetic
from l2c.sampling.execution.runner import Runner, cache_explained
from l2c.sampling.inputs import as_labels, check_images, checked_count
from l2c.sampling.store import LayerStore, Stores


def seeded_noise(shape: tuple[int, ...], seed: int, count: int, *, first: int = 0) -> Tensor:
    """Return noise (count, *shape) on the CPU; image `first + i` always gets the same, however it is batched."""
    count = whole_number("a number of images", count, low=0, high=AT_ONCE)
    images = [draw_normal(shape, "start of a trajectory", seed, i) for i in range(first, first + count)]
    return torch.stack(images) if images else torch.empty(0, *shape)


def named_or_called(name: str, value: Any) -> Any:
    """Return a compiler, by its name or as a function; refuse what is neither."""
    return value if callable(value) else text(name, value)


def check_unpacked(backbone: Backbone) -> None:
    """Refuse a network whose embedder of timesteps has no parameters, of whose type its inputs are.

    Raises:
        ValueError: if its linear layers were replaced by packed ones, as torch's `quantize_dynamic` does.

    """
    for name, module in backbone.named_modules():
        if isinstance(module, TimestepEmbedder) and next(module.parameters(), None) is None:
            raise ValueError(
                f"the backbone's {name} has no parameters, as torch.ao.quantization packs weights; quantise with "
                "torchao, which keeps parameters, or give the plain weights with precision='bf16' or 'fp32'"
            )


class Sampler:
    """Draw images with a backbone; with a graph, skip the layers that it says to skip.

    One sampler may be used from several threads: each trajectory keeps its own state. Where blocks are compiled or
    trajectories captured, threads wait for each other. A copy or a pickle compiles and captures anew when used.

    Args:
        backbone: a frozen network.
        graph: a cache graph, the path of one, or the name of a bundled one; it brings solver, evaluations,
            timesteps and guidance. Refused where it does not fit the backbone, its weights, or what else is given.
        solver: `ddim`, `ddpm`, `dpm_solver_2s` or `dpm_solver_2m`, for a flow `flow_euler` or `flow_dpm_2m`; or an
            `l2c.diffusion.Solver` of your own (`name = "own_..."`), which has its evaluations and options. Required
            without a graph.
        num_evaluations: number of calls of the backbone; required without a graph.
        cfg_scale: guidance scale in the convention of the backbone's publication (DiT: 1.0 = off, U-ViT: 0.0 =
            off); None = the graph's, else the published one of the backbone's preset, else off.
        eta: stochasticity of DDIM in [0, 1]; None = the graph's, else 0.
        solver_options: the solver's own settings by name, such as `shift` of flows; where not given, the graph's,
            else the solver's defaults.
        any_weights: accept a graph that was made for other weights of the same architecture (benchmarks).
        any_guidance: accept a graph that was made under another guidance scale than `cfg_scale`.
        precision: `fp32`, `tf32`, `bf16` or `fp16`, of the network (a copy of it where it is in another one); the
            solver's arithmetic is in 32 bits always, and `torch.autocast` around a call changes nothing. None = as
            the backbone is.
        matmul: library for 32-bit products on a CPU, `default` or `onednn`; see `sampling.execution.precision`.
        cache_dtype: type of cached outputs, e.g. `bf16` for half the memory; None = as computed.
        cache_device: device of cached outputs, e.g. `cpu` beside a GPU; None = where computed.

    Attributes:
        lifetimes: lifetimes of the cached outputs; None without a graph.
        cache_dtype: type of cached outputs; None = as computed.

    Raises:
        ValueError: if the graph does not fit, or an argument is out of range; the message says how to mend it.

    """

    @near_keywords()
    def __init__(
        self,
        backbone: Backbone,
        *,
        graph: CacheGraph | str | Path | None = None,
        solver: str | Solver | None = None,
        num_evaluations: int | None = None,
        cfg_scale: float | None = None,
        eta: float | None = None,
        solver_options: Mapping[str, float] | None = None,
        any_weights: bool = False,
        any_guidance: bool = False,
        precision: str | None = None,
        matmul: str = "default",
        cache_dtype: torch.dtype | str | None = None,
        cache_device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(backbone, Backbone):
            mend = "; give the backbone that was compiled, and call .compile() of the sampler"
            raise ValueError(
                f"a sampler needs a backbone (l2c.load_backbone, l2c.wrap), got {type(backbone).__name__}"
                f"{mend if hasattr(backbone, INSIDE_COMPILED) else ''}"
            )
        check_unpacked(backbone)
        graph = loaded(graph)
        if not isinstance(solver_options, Mapping | None):
            raise ValueError(f"solver_options must be numbers by name, got {type(solver_options).__name__}")
        given = {str(name): finite_number(str(name), value) for name, value in (solver_options or {}).items()}
        if eta is not None:
            given["eta"] = finite_number("eta", eta, low=0, high=1)
        any_weights, any_guidance = (
            truth_value("any_weights", any_weights),
            truth_value("any_guidance", any_guidance),
        )
        self.graph = graph
        backbone = backbone if graph is None else under_layers(backbone, graph.layers)
        own = checked_own(backbone, solver, num_evaluations, given) if isinstance(solver, Solver) else None
        if own is not None:
            solver, num_evaluations, given = own.name, own.num_evaluations, dict(own.options)
        name, count, options = agreed(backbone, graph, solver, num_evaluations, given, any_weights)  # type: ignore[arg-type]
        self.solver = own or solver_for(backbone, name, count, **options)
        self.guidance = guidance_in_use(backbone, graph, cfg_scale, any_guidance=any_guidance)
        if graph is not None:
            tolerance = tolerance_of(self.solver.timesteps)
            check_times(graph.binding, self.solver.timesteps, lambda t: tolerance)
            check_noise(graph, draws=self.solver.stochastic)
        self._correction = None if graph is None else Correction.of(graph)  # refuses a file that does not belong
        self.backbone = in_precision(backbone, precision)
        self.lifetimes = None if graph is None else lifetimes_for(backbone, graph)
        self._products = precision, matmul
        self._matmuls: dict[str, str | None] = {}  # by kind of device
        self.matmul_on(next(self.backbone.parameters()).device)  # refuses an unknown one
        self.cache_dtype = dtype_of(cache_dtype, "cache_dtype")
        self._stores = Stores(self.cache_dtype, cache_device)
        self._runner = Runner()
        self._watch = watch_of(self.backbone, graph, any_weights=any_weights)

    def __repr__(self) -> str:
        name, solver, guidance = self.backbone.conventions.name, self.solver, self.guidance
        what = "uncached" if self.graph is None else repr(self.graph)
        return (
            f"<Sampler of {shown(name)}: {solver.name}, {solver.num_evaluations} evaluations, "
            f"guidance {guidance.mode} {guidance.described}, {what}>"
        )

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The t that the backbone is given at each evaluation, noisiest first."""
        return self.solver.timesteps

    @property
    def matmul(self) -> str | None:
        """Torch's setting of matrix products while this sampler runs; None = as it is."""
        return self.matmul_on(next(self.backbone.parameters()).device)

    def matmul_on(self, device: torch.device) -> str | None:
        """Return the matmul setting for a device."""
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
            ValueError: if labels are out of range, shapes do not fit, the noise is not finite, there is neither
                noise nor seed, an image comes out as NaN or infinity, the weights are no longer the graph's, or
                blocks return or are something else than when the sampler was made.
            MemoryError: if memory runs out; the message says what lowers it.

        """
        progress = truth_value("progress", progress)
        if self._watch is not None:
            self._watch.look(self.backbone)
        device = next(self.backbone.parameters()).device
        y = as_labels(labels, device)
        count = checked_count(self.backbone, y, noise)
        seed = None if seed is None else whole_number("seed", seed, low=0)
        first_image = whole_number("first_image", first_image, low=0)
        if noise is None:
            if seed is None:
                raise ValueError("give noise=(N, C, H, W), or seed=0 to have it drawn")
            noise = seeded_noise(self.backbone.input_shape, seed, count, first=first_image)
        x = noise.to(device, torch.float32)
        y = None if y is None else y.long()
        images = range(first_image, first_image + count)
        generator = None if seed is None else ImageNoise("noise of a stochastic solver", seed, images)
        with own_arithmetic(self.matmul, device), cache_explained(count, self.cache_bytes(count)):
            result = self._runner.run(
                self._trajectory,
                self.solver,
                x,
                y,
                generator,
                weights=lambda: weights_in(self.backbone),
                offloaded=self._stores.device is not None,
                progress=progress,
            )
        check_images(result)
        return result

    def _trajectory(self, x: Tensor, y: Tensor | None, **options: Any) -> Tensor:
        """Return the images (N, C, H, W) that noise x (N, C, H, W) leads to."""
        with self._stores.lent() as store:
            return self.solver.sample(self.denoiser(y, store), x, **options)

    def denoiser(self, y: Tensor | None, store: LayerStore | None = None) -> Denoiser:
        """Return the executor of one trajectory for labels y (N,), as `sample` uses it.

        Args:
            y: (N,) labels; None for a backbone without.
            store: store of the outputs, used by no other trajectory at the same time; None = a new one.

        """
        return Denoiser(
            self.backbone,
            y,
            self.guidance,
            self.graph,
            timesteps=self.timesteps,
            lifetimes=self.lifetimes,
            correction=self._correction,
            store=store or self._stores.new(),
            call=self._runner.call,
        )

    @property
    def cache_peak_bytes(self) -> int:
        """The most memory that the cache has held in any trajectory so far, in bytes."""
        return self._stores.peak_bytes

    @property
    def compiled(self) -> bool:
        """Whether the blocks run compiled."""
        return self._runner.compiled

    @property
    def captured(self) -> bool:
        """Whether trajectories are replayed as a CUDA graph, from the next batch on at the latest."""
        return self._runner.captured

    def cache_bytes(self, num_images: int) -> int:
        """Return the memory that the cache needs at its peak for a number of images, in bytes; 0 without a graph.

        Raises:
            ValueError: if the number is no whole number of at least 0.

        """
        num_images = whole_number("num_images", num_images, low=0)
        lifetimes, backbone = self.lifetimes, self.backbone
        if lifetimes is None or backbone.kept_numbers is None:
            return 0
        numbers = lifetimes.num_slots * backbone.kept_numbers
        if isinstance(backbone, LayersAndOutput):
            numbers += lifetimes.num_whole * (backbone.output_numbers or 0)
        dtype = self._stores.dtype or backbone.dtype
        return numbers * self.guidance.rows(num_images) * dtype.itemsize

    @takes(backend=named_or_called, progress=truth_value)
    def compile(
        self, num_images: int = 1, *, backend: str | Callable[..., Any] = "inductor", progress: bool = True
    ) -> Sampler:
        """Compile the backbone's blocks for this sampler, with a batch of some images as a warm-up; return it.

        A compiler that fails is reported by one warning; the sampler goes on without it.

        Raises:
            ValueError: if the number of images is no whole number of at least 1.
            MemoryError: if the warm-up runs out of memory; sampling so many images would too.

        """
        num_images = whole_number("num_images", num_images, low=1, high=AT_ONCE)
        rows = self.guidance.rows(num_images)
        device = next(self.backbone.parameters()).device
        with own_arithmetic(self.matmul, device), cache_explained(num_images, self.cache_bytes(num_images)):
            self._runner.compile(self.backbone, self.graph, rows, backend=backend, progress=progress)
        return self

    def blocks_by(self, call: BlockCall) -> None:
        """Run blocks by a given function, `call(block, *inputs, fresh, cached)`; see `Pass`."""
        self._runner.blocks_by(call)

    def capture(self) -> Sampler:
        """Replay whole trajectories as one CUDA graph from the next batch on; return the sampler.

        Where that cannot be done, one warning says why and sampling goes on as before.
        """
        self._runner.capture()
        return self
