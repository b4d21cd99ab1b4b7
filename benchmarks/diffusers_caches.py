"""Time DiTPipeline under a cache graph beside the caches of diffusers and cache-dit, for the same reuse.

python benchmarks/diffusers_caches.py size=xl repetitions=3
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from omegaconf import DictConfig
from twins import COMPUTE_ALL, first_block_at_odd_steps, graph_of, twin

from l2c.commands.frame import entry as cli
from l2c.io.atomic import write_json
from l2c.io.torchvision_stand_in import make_importable
from l2c.speed.latency import Latency, alternate

make_importable()  # diffusers and transformers import torchvision

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 28, "sample_size": 8},
    "xl": {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32},
}
NEVER, ALWAYS = -1, 1001


def make_pipeline(size: str) -> Any:
    """Return a DiTPipeline with random weights, and a small autoencoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(in_channels=4, out_channels=8, **SIZES[size]).eval().requires_grad_(False)
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    return DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler())


class Rivals:
    """Pairs of pipelines that reuse the same: ours, and another package's.

    Args:
        pipe: the uncached pipeline.
        steps: evaluations of a call.

    """

    def __init__(self, pipe: Any, steps: int) -> None:
        self.pipe = pipe
        self.steps = steps
        self.depth = len(pipe.transformer.transformer_blocks)

    def ours(self, fresh: Callable[[int, int], bool], *, of: str, linear: bool = False) -> Any:
        """Return a pipeline under the graph whose entries (evaluation, layer) `fresh` computes."""
        from l2c.integrations.diffusers import apply

        pipe = twin(self.pipe)
        count = self.depth if of == "block" else 2 * self.depth
        rows = [[fresh(e, layer) for layer in range(count)] for e in range(self.steps)]
        pipe.scheduler.set_timesteps(self.steps)
        apply(pipe, graph_of(pipe, rows, pipe.scheduler.timesteps.tolist(), of=of, linear=linear))
        return pipe

    def overhead(self) -> dict[str, Any]:
        """Return nothing but a graph that computes everything."""
        return {"all-compute graph": self.ours(lambda e, layer: True, of="layer")}

    def first_block_cache(self) -> dict[str, Any]:
        """Return pipelines that compute the first block alone after the first step."""
        from diffusers import FirstBlockCacheConfig, apply_first_block_cache

        pipe = twin(self.pipe)
        apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=COMPUTE_ALL))

        ours = self.ours(lambda e, block: e == 0 or block == 0, of="block")
        return {"ours: first block": ours, "FirstBlockCache": Called(pipe)}

    def pyramid_attention_broadcast(self) -> dict[str, Any]:
        """Return pipelines that reuse all attention at every second step."""
        from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        pipe = twin(self.pipe)
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(NEVER, ALWAYS),
            current_timestep_callback=lambda: 500,
        )
        apply_pyramid_attention_broadcast(pipe.transformer, config)
        ours = self.ours(lambda e, layer: e % 2 == 0 or layer % 2 == 1, of="layer")
        return {"ours: attention": ours, "PyramidAttentionBroadcast": Called(pipe)}

    def taylorseer(self) -> dict[str, Any]:
        """Return pipelines that extrapolate all attention at steps 2, 4, ..."""
        from diffusers import TaylorSeerCacheConfig, apply_taylorseer_cache

        pipe = twin(self.pipe)
        config = TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=2,
            max_order=1,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"transformer_blocks\.\d+\.attn1"],  # its own patterns miss DiT's names
        )
        apply_taylorseer_cache(pipe.transformer, config)

        ours = self.ours(lambda e, layer: e in (0, 1) or e % 2 == 1 or layer % 2 == 1, of="layer", linear=True)
        return {"ours: linear attention": ours, "TaylorSeerCache": Called(pipe)}

    def cache_dit(self) -> dict[str, Any]:
        """Return pipelines that compute the first block alone at every second step."""
        pipe = twin(self.pipe)
        try:
            first_block_at_odd_steps(pipe, self.steps)
        except ModuleNotFoundError:
            print("cache_dit is not installed: left out (pip install cache-dit)")
            return {}
        ours = self.ours(lambda e, block: e % 2 == 0 or block == 0, of="block")
        return {"ours: step mask": ours, "cache-dit step mask": pipe}


class Called:
    """A pipeline with one of diffusers' caches, each call of which begins anew.

    DiTPipeline neither resets such hooks nor names a context, without which two of the caches refuse to run.
    """

    def __init__(self, pipe: Any) -> None:
        from diffusers.hooks import HookRegistry

        self.transformer = pipe.transformer
        self._pipe = pipe
        self._registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)

    def __call__(self, **options: Any) -> Any:
        """Call the pipeline."""
        from diffusers.hooks.hooks import CacheContext, _set_cache_context

        self._registry.reset_stateful_hooks()
        self._registry.invalidate_child_registries_cache()
        _set_cache_context(self.transformer, CacheContext("cond_uncond"))
        return self._pipe(**options)


def computed(pipe: Any, call: Callable[[], object]) -> tuple[int, int]:
    """Return how many attentions and feed-forwards a call computes."""
    counts = [0, 0]
    hooks = []
    for name, module in pipe.transformer.named_modules():
        for kind, ending in enumerate(("attn1.to_q", "ff.net.2")):
            if name.endswith(ending):

                def count(*_: Any, kind: int = kind) -> None:
                    counts[kind] += 1

                hooks.append(module.register_forward_hook(count))
    call()
    for hook in hooks:
        hook.remove()
    return counts[0], counts[1]


def row(name: str, times: dict[str, Latency], counts: tuple[int, int], steps: int) -> dict[str, Any]:
    """Return one line of the table; the second variant is ours, which the others are set against."""
    latency, ours = times[name], list(times)[1]
    middle, low, high = times[ours].ratio(latency)
    return {
        "variant": name,
        "attention, MLP computed": f"{counts[0]}, {counts[1]}",
        "ms per evaluation": round(1e3 * latency.seconds / steps, 3),
        "half the quartiles' range": round(1e3 * latency.spread / steps, 3),
        "uncached over this": round(latency.speed_up, 4),
        "this over ours": f"{middle:.4f} (quartiles {low:.4f}, {high:.4f})",
    }


@cli.entry("benchmark_diffusers")
def main(cfg: DictConfig) -> None:
    """Build, count, time, print, write."""
    if cfg.size not in SIZES:
        raise ValueError(f"unknown size {cfg.size!r}; known are {', '.join(SIZES)}")
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    plain = twin(make_pipeline(cfg.size))
    rivals = Rivals(plain, cfg.steps)
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "diffusers", "cache-dit", "l2c")
        if find_spec(name.replace("-", "_"))
        if name != "cache-dit" or "cache_dit" in cfg.compare
    }
    report: dict[str, Any] = {"versions": versions, "processor": platform.processor() or platform.machine()}
    print(
        ", ".join(f"{name} {version}" for name, version in versions.items()), f"; {torch.get_num_threads()} threads"
    )
    options = {
        "class_labels": [207] * cfg.num_labels,
        "num_inference_steps": cfg.steps,
        "guidance_scale": cfg.guidance_scale,
        "output_type": "np",
    }
    for comparison in cfg.compare:
        pipes = {"uncached": plain, **getattr(rivals, comparison)()}
        if len(pipes) == 1:
            continue
        calls = {
            name: (lambda pipe=pipe: pipe(generator=torch.Generator().manual_seed(0), **options))
            for name, pipe in pipes.items()
        }
        counts = {name: computed(pipe, calls[name]) for name, pipe in pipes.items()}
        if len({counts[name] for name in list(pipes)[1:]}) > 1:
            raise ValueError(f"{comparison}: the variants do not reuse the same, so times say nothing: {counts}")
        times = alternate(calls, repetitions=cfg.repetitions)
        report[comparison] = [row(name, times, counts[name], cfg.steps) for name in calls]
        print(f"\n{comparison}")
        for line in report[comparison]:
            print("  " + "  ".join(f"{key}: {value}" for key, value in line.items()))
    folder = cli.run_folder()
    write_json(folder / "benchmark.json", report)
    print(f"wrote {folder / 'benchmark.json'} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})")


if __name__ == "__main__":
    main()
