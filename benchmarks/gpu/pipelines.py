"""A pipeline of Flux's size under cache graphs, beside the caches of other packages that reuse the same."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.task import OutOfTime, Task, against, lacking_module
from benchmarks.twins import COMPUTE_ALL, first_block_at_odd_steps, graph_of, twin
from l2c.io.torchvision_stand_in import make_importable
from l2c.sampling.execution.compiled import short_reason
from l2c.speed.latency import Latency, latencies, timed_rounds

make_importable()  # diffusers and transformers import torchvision

# The defaults of FluxTransformer2DModel are those of FLUX.1.
TINY = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
COUNTED = ("to_q", "ff.net.2", "ff_context.net.2", "proj_mlp")  # one of each layer, below what caches wrap
BLOCKS, LAYERS = "graph: first block alone at steps 1, 3, ...", "graph: all layers extrapolated at steps 2, 4, ..."
EVERYTHING = "graph: everything computed"
STEPS = (20, 16, 10, 8, 6, 4)  # of a drawing; even, as the caches take turns
VARIANTS = 7
COUNTED_DRAWS = VARIANTS + 2  # one to count each; the uncached one a few times before
SAME_REUSE = {"FirstBlockCache": BLOCKS, "cache-dit DBCache": BLOCKS, "TaylorSeer": LAYERS}


def measure(task: Task) -> None:
    """Count what each variant computes, then time all in turn; the two that say what the hooks cost come first.

    Every count and every round is sent at once.

    Raises:
        OutOfTime: a variant, or a round, was not begun in time.

    """
    torch.manual_seed(0)
    rivals = Rivals(task)
    task.reset_memory()
    comparison = Comparison(task, rivals)
    comparison.add("uncached", lambda: rivals.plain)
    comparison.add(EVERYTHING, rivals.everything)
    comparison.time("what the hooks cost", task.rounds)
    for name, make in rivals.caches().items():
        task.begin()
        comparison.add(name, make)
    comparison.time("all of them in turn", rivals.rounds)
    task.send("memory", {"most, with all of them in turn, MB": task.peak_memory()})


class Comparison:
    """Variants side by side: what each computes, and its seconds."""

    def __init__(self, task: Task, rivals: Rivals) -> None:
        self.task = task
        self.rivals = rivals
        self.size = f"{rivals.size}, {rivals.steps} steps, {task.precision}"
        self.calls: dict[str, Callable[[], object]] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, make: Callable[[], Any]) -> None:
        """Make a variant, draw with it once, send what it computes or why it is not there."""
        try:
            pipe = make()
            count = _computed(pipe.transformer, lambda: self.rivals.draw(pipe))
        except Exception as error:  # other packages fail in ways of their own, which are no reason to stop
            if name not in SAME_REUSE:
                raise
            self.task.send("left out", {"variant": name, "reason": lacking_module(error) or short_reason(error)})
            return
        self.calls[name], self.counts[name] = lambda: self.rivals.draw(pipe), count
        full = self.counts["uncached"]
        self.task.send(f"layers computed, {self.size}", {"variant": name, "layers computed": f"{count} of {full}"})
        pair = SAME_REUSE.get(name)
        if pair is not None and self.counts[pair] != count:
            self.task.send("not the same reuse", {"variant": name, "computes": count, "ours": self.counts[pair]})

    def time(self, title: str, number: int) -> None:
        """Time what is there in turn, round by round in time, and send the medians.

        Raises:
            OutOfTime: not all rounds were begun in time.

        """
        done: list[dict[str, float]] = []
        rounds = timed_rounds(self.calls)
        while len(done) < number and self.task.in_time:
            done.append(next(rounds))
            self.task.send(f"{title}, seconds of each round", {"round": len(done), **done[-1]})
        if done:
            self._send(title, latencies(done))
        if len(done) < number:
            raise OutOfTime(f"{len(done)} of {number} rounds of {title!r} were timed")

    def _send(self, title: str, times: dict[str, Latency]) -> None:
        for name, latency in times.items():
            pair = SAME_REUSE.get(name)
            self.task.send(
                f"{title}, {self.size}",
                {
                    "variant": name,
                    "layers computed": f"{self.counts[name]} of {self.counts['uncached']}",
                    "seconds": latency.seconds,
                    "over uncached": against(latency, times["uncached"]),
                    "over ours of the same reuse": None if pair is None else against(latency, times[pair]),
                },
            )


class Rivals:
    """Pipelines over the same weights, each with a cache of its own.

    Args:
        task: says where, and how large.

    Attributes:
        steps: of each drawing, as many as time allows.

    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.rounds = 2 if task.tiny else 3  # of all variants
        self.side = 32 if task.tiny else 1024  # pixels; a token covers 16 x 16 of them
        self.size = "a tiny Flux" if task.tiny else "FLUX.1's size, random weights, 1024 x 1024"
        self.plain = _pipeline(task)
        config = self.plain.transformer.config
        options: dict[str, Any] = {"device": task.device, "dtype": task.dtype}
        tokens = 7 if task.tiny else 512
        self._text = torch.randn(1, tokens, config.joint_attention_dim, **options)
        self._pooled = torch.randn(1, config.pooled_projection_dim, **options)
        self.steps = self._steps()
        self.draw(self.plain)
        self._timesteps = tuple(t / 1000 for t in self.plain.scheduler.timesteps.tolist())

    def draw(self, pipe: Any) -> torch.Tensor:
        """Return latents of one image."""
        return pipe(
            prompt_embeds=self._text,
            pooled_prompt_embeds=self._pooled,
            height=self.side,
            width=self.side,
            num_inference_steps=self.steps,
            guidance_scale=3.5,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    def everything(self) -> Any:
        """Return a pipeline with our hooks at every layer and nothing reused."""
        return self._ours(lambda e, layer: True, of="layer")

    def caches(self) -> dict[str, Callable[[], Any]]:
        """Return the makers of the variants that reuse something, ours first."""
        return {
            BLOCKS: lambda: self._ours(lambda e, block: e % 2 == 0 or block == 0, of="block"),
            LAYERS: lambda: self._ours(lambda e, layer: e in (0, 1) or e % 2 == 1, of="layer", linear=True),
            "FirstBlockCache": lambda: self._of_others(self._first_block_cache),
            "TaylorSeer": lambda: self._of_others(self._taylorseer),
            "cache-dit DBCache": lambda: self._of_others(self._dbcache),
        }

    def _steps(self) -> int:
        """Draw twice in few steps and return how many fit into the time that is left."""
        self.steps = STEPS[-1]
        self.draw(self.plain)
        a_step = self.task.seconds(lambda: self.draw(self.plain)) / self.steps
        draws = COUNTED_DRAWS + 2 * self.task.rounds + VARIANTS * self.rounds
        choices = STEPS[-1:] if self.task.tiny else STEPS
        return steps_that_fit(choices, draws * a_step, self.task.deadline - time.monotonic())

    @staticmethod
    def _of_others(make: Callable[[], Any]) -> Any:
        pipe = make()
        _forget_children(pipe.transformer)
        return pipe

    def _ours(self, fresh: Callable[[int, int], bool], *, of: str, linear: bool = False) -> Any:
        from l2c.integrations.diffusers import apply
        from l2c.integrations.diffusers.layers import find_layers

        pipe = twin(self.plain)
        count = len(find_layers(pipe.transformer, of=(of,)))
        rows = [[fresh(e, i) for i in range(count)] for e in range(self.steps)]
        apply(pipe, graph_of(pipe, rows, self._timesteps, of=of, linear=linear))
        return pipe

    def _first_block_cache(self) -> Any:
        from diffusers import FirstBlockCacheConfig, apply_first_block_cache
        from diffusers.hooks import HookRegistry

        pipe = twin(self.plain)
        apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=COMPUTE_ALL))
        hooks = HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[0]).hooks
        (leader,) = (hook for hook in hooks.values() if hasattr(hook, "_should_compute_remaining_blocks"))
        decide, seen = leader._should_compute_remaining_blocks, iter(range(10**9))

        def every_second(residual: torch.Tensor) -> bool:
            decide(residual)  # what it measures is part of its time
            return next(seen) % self.steps % 2 == 0

        leader._should_compute_remaining_blocks = every_second
        return pipe

    def _taylorseer(self) -> Any:
        from diffusers import TaylorSeerCacheConfig, apply_taylorseer_cache

        from l2c.integrations.diffusers.layers import find_layers, make_layer

        pipe = twin(self.plain)
        layers = [make_layer(pipe.transformer, name) for name in find_layers(pipe.transformer, of=("layer",))]
        silent = {id(module) for layer in layers for module in layer.silent}
        config = TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=2,
            max_order=1,
            taylor_factors_dtype=self.task.dtype,
            cache_identifiers=[re.escape(layer.name) for layer in layers],
            skip_predict_identifiers=_names(pipe.transformer, silent) or None,
        )
        apply_taylorseer_cache(pipe.transformer, config)
        return pipe

    def _dbcache(self) -> Any:
        pipe = twin(self.plain)
        first_block_at_odd_steps(pipe, self.steps)
        return pipe


def steps_that_fit(choices: Sequence[int], a_step: float, left: float) -> int:
    """Return the first of some numbers of steps that takes no more than the seconds left, else the last.

    Args:
        choices: numbers of steps, most first.
        a_step: seconds of a step in all drawings together.
        left: seconds.

    """
    return next((steps for steps in choices if steps * a_step <= left), choices[-1])


def _pipeline(task: Task) -> Any:
    """Return a FluxPipeline without text encoders and autoencoder: embeddings go in, latents come out."""
    import transformers  # noqa: F401  without it diffusers gives a pipeline that fails in words of its own
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(task.dtype)  # in 32 bits it would not fit beside its caches
    try:
        with torch.device(task.device):
            transformer = FluxTransformer2DModel(guidance_embeds=True, **(TINY if task.tiny else {}))
    finally:
        torch.set_default_dtype(before)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer.eval().requires_grad_(False).to(task.device),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _forget_children(transformer: nn.Module) -> None:
    """Let a transformer look for hooks below it anew: it was copied with the list of the one that had none."""
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()


def _names(model: nn.Module, modules: set[int]) -> list[str]:
    return [re.escape(name) for name, module in model.named_modules() if id(module) in modules]


def _computed(model: nn.Module, call: Callable[[], object], endings: Sequence[str] = COUNTED) -> int:
    """Return how many layers a call computes."""
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    found = [module for name, module in model.named_modules() if name.endswith(tuple(endings))]
    hooks = [module.register_forward_hook(add) for module in found]
    call()
    for hook in hooks:
        hook.remove()
    return count
