"""Tiny pipelines of sound, and of videos with sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_parts import make_tokenizer
from tiny_pipelines import TinyPipeline, denoiser, stable_audio
from tiny_variants import varied

LLAMA = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}


def _flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def stable_audio_init() -> TinyPipeline:
    """Begins with a sound."""
    sound = torch.sin(torch.arange(64.0)).expand(1, 2, 64)
    given = {"initial_audio_waveforms": sound, "initial_audio_sampling_rate": 16}
    return varied(stable_audio(), "StableAudioPipeline", **given)


def ace_step() -> TinyPipeline:
    """Given the timestep twice."""
    from diffusers import AceStepPipeline, AutoencoderOobleck
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = {"num_lyric_encoder_hidden_layers": 1, "num_timbre_encoder_hidden_layers": 1}
    encoder = AceStepConditionEncoder(**sizes, **layers, text_hidden_dim=32, timbre_hidden_dim=8, head_dim=8)
    config = Qwen3Config(vocab_size=8, num_hidden_layers=1, head_dim=8, **sizes)
    pipe = AceStepPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=6,
            decoder_input_channels=8,
            channel_multiples=[2, 4],
            sampling_rate=48,
        ),
        text_encoder=Qwen3Model(config).eval(),
        tokenizer=make_tokenizer(32),
        transformer=denoiser("AceStepTransformer1DModel"),
        condition_encoder=encoder.eval(),
        scheduler=_flow(num_train_timesteps=1),
    )
    return TinyPipeline(pipe, {"audio_duration": 1.0, "lyrics": "a red"}, scale=1.0)


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


def ltx2() -> TinyPipeline:
    """Frames and sound move together; several kinds of guidance run in passes of their own."""
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"model_type": "gemma3_text", "vocab_size": 16, "num_hidden_layers": 2, "num_key_value_heads": 2}
    vision = {"model_type": "siglip_vision_model", "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 9, "boi_token_index": 10, "eoi_token_index": 11}
    config = Gemma3Config(
        text_config={**LLAMA, **text, "head_dim": 8}, vision_config={**LLAMA, **vision}, **tokens, pad_token_id=0
    )
    of_one = {"spatio_temporal_scaling": (True,), "decoder_spatio_temporal_scaling": (True,)}
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        **of_one,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    heads = {"attention_head_dim": 4, "num_attention_heads": 4, "num_layers": 1, "num_learnable_registers": None}
    connectors = {f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in heads.items()}
    pipe = diffusers.LTX2Pipeline(
        scheduler=_flow(),
        vae=vae,
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
        ),
        text_encoder=Gemma3ForConditionalGeneration(config).eval(),
        tokenizer=make_tokenizer(16),
        connectors=LTX2TextConnectors(16, 3, **connectors, rope_double_precision=False).eval(),
        transformer=denoiser("LTX2VideoTransformer3DModel"),
        vocoder=LTX2Vocoder(
            in_channels=16,
            hidden_channels=32,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
    )
    sizes = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    return TinyPipeline(pipe, {**sizes, "spatio_temporal_guidance_blocks": [1]})


SOUNDS: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker for maker in (stable_audio_init, ace_step, longcat_audio, ltx2)
}
