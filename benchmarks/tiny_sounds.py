"""Tiny pipelines of sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_parts import make_tokenizer
from tiny_pipelines import TinyPipeline, denoiser, stable_audio
from tiny_variants import varied


def _flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def stable_audio_init() -> TinyPipeline:
    """Begins with a sound."""
    sound = torch.sin(torch.arange(64.0)).expand(1, 2, 64)
    given = {"initial_audio_waveforms": sound, "initial_audio_sampling_rate": 16}
    return varied(stable_audio(), "StableAudioPipeline", **given)


def longcat_audio() -> TinyPipeline:
    """Lengths of sound and text are masks."""
    from diffusers import LongCatAudioDiTPipeline, LongCatAudioDiTVae
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    sizes = {"channels": 8, "c_mults": [1, 2], "strides": [2], "latent_dim": 8, "encoder_latent_dim": 16}
    pipe = LongCatAudioDiTPipeline(
        vae=LongCatAudioDiTVae(**sizes, downsampling_ratio=2, sample_rate=24),
        text_encoder=UMT5EncoderModel(config).eval(),
        tokenizer=make_tokenizer(16),
        transformer=denoiser("LongCatAudioDiTTransformer"),
        scheduler=_flow(),
    )
    return TinyPipeline(pipe, {"audio_duration_s": 1.0})


SOUNDS: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker for maker in (stable_audio_init, longcat_audio)
}
