"""Tiny pipelines that scale what their network is given and change what it predicts before the scheduler steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from tiny_parts import make_t5, make_tokenizer
from tiny_pipelines import TEXT, TinyPipeline, denoiser, flow, sana, wan21
from tiny_variants import picture, varied
from tiny_videos import FRAMES, Unchecked


def sana_sprint() -> TinyPipeline:
    """Flow under times that are angles, of which the network is given another function; adds noise."""
    from diffusers import SCMScheduler

    parts = {
        "transformer": denoiser("SanaTransformer2DModel", guidance_embeds=True),
        "scheduler": SCMScheduler(prediction_type="trigflow", sigma_data=0.5),
    }
    return varied(sana(), "SanaSprintPipeline", parts, **sana().options, intermediate_timesteps=None)


def _cosmos(pipeline: str, parts: Mapping[str, Any], channels: int = 16, **options: Any) -> TinyPipeline:
    """Return a pipeline of Cosmos 1 or 2."""
    import diffusers

    sys.modules[getattr(diffusers, pipeline).__module__].__dict__["CosmosSafetyChecker"] = Unchecked
    sizes = {"in_channels": channels, "out_channels": 16, "text_embed_dim": TEXT, "num_layers": 3}
    own = {
        "transformer": denoiser("CosmosTransformer3DModel", **sizes),
        "tokenizer": make_tokenizer(7),
        "text_encoder": make_t5(),
    }
    given = {"height": 32, "width": 32, "max_sequence_length": 7, "negative_prompt": "", **options}
    return varied(wan21(), pipeline, {**own, **parts}, **given)


def _cosmos1(pipeline: str, channels: int, **options: Any) -> TinyPipeline:
    """Return a pipeline of Cosmos 1, whose scheduler steps twice: to data, and under guidance from data."""
    from diffusers import AutoencoderKLCosmos, EDMEulerScheduler

    sizes = {"encoder_block_out_channels": (8,) * 4, "decode_block_out_channels": (8,) * 4, "num_layers": 1}
    rates = {"spatial_compression_ratio": 4, "temporal_compression_ratio": 4, "attention_resolutions": (8,)}
    parts = {
        "vae": AutoencoderKLCosmos(**sizes, **rates, resolution=64),
        "scheduler": EDMEulerScheduler(final_sigmas_type="sigma_min"),
    }
    return _cosmos(pipeline, parts, channels, **{"num_frames": FRAMES, **options})


def cosmos() -> TinyPipeline:
    """From text alone."""
    return _cosmos1("CosmosTextToWorldPipeline", 16)


def cosmos_video() -> TinyPipeline:
    """Begins with a picture, to which noise is added at every step."""
    return _cosmos1("CosmosVideoToWorldPipeline", 17, num_frames=9, image=picture(32))


def cosmos2() -> TinyPipeline:
    """Flow to whose steps the pipeline gives what it made of state and prediction."""
    return _cosmos("Cosmos2TextToImagePipeline", {"scheduler": flow(use_karras_sigmas=True)})


def cosmos2_video() -> TinyPipeline:
    """Begins with a picture."""
    parts = {"scheduler": flow(use_karras_sigmas=True)}
    return _cosmos("Cosmos2VideoToWorldPipeline", parts, 17, num_frames=FRAMES, image=picture(32))


def cosmos3() -> TinyPipeline:
    """Tokens of text and picture in one row without a batch, whose noisy input comes after the text."""
    from diffusers import Cosmos3OmniPipeline

    base = wan21().pipe
    sizes = {"latent_channel": 16, "patch_latent_dim": 16, "num_hidden_layers": 4, "vocab_size": 8}
    pipe = Cosmos3OmniPipeline(
        transformer=denoiser("Cosmos3OmniTransformer", **sizes),
        text_tokenizer=make_tokenizer(16, "{{ messages[-1]['content'] }}"),
        vae=base.vae,
        scheduler=base.scheduler,
        enable_safety_checker=False,
    )
    return TinyPipeline(pipe, {"height": 16, "width": 16, "num_frames": 1, "add_resolution_template": False})


PRECONDITIONED: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker for maker in (sana_sprint, cosmos, cosmos_video, cosmos2, cosmos2_video, cosmos3)
}
