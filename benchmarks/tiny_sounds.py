"""Tiny pipelines of sound."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from tiny_parts import frozen, make_t5, make_tokenizer
from tiny_pipelines import ATTENTIVE, TEXT, TinyPipeline, denoiser, flow, stable_audio
from tiny_variants import varied


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
        scheduler=flow(),
    )
    return TinyPipeline(pipe, {"audio_duration_s": 1.0})


def ace_step() -> TinyPipeline:
    """Songs of a text and lyrics; times from 0 to 1, given twice."""
    from diffusers import AceStepPipeline, AutoencoderOobleck
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, **heads)
    widths = {"hidden_size": 32, "intermediate_size": 64, "text_hidden_dim": 32, "timbre_hidden_dim": 8}
    layers = {"num_lyric_encoder_hidden_layers": 1, "num_timbre_encoder_hidden_layers": 1, "sliding_window": 16}
    encoder = frozen(
        AceStepConditionEncoder(**widths, **layers, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    )
    encoder.silence_latent.normal_()
    ends = {"decoder_input_channels": 8, "audio_channels": 2, "channel_multiples": [2, 4], "sampling_rate": 48}
    pipe = AceStepPipeline(
        vae=AutoencoderOobleck(encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=6, **ends),
        text_encoder=Qwen3Model(config).eval(),
        tokenizer=make_tokenizer(32),
        transformer=denoiser("AceStepTransformer1DModel"),
        condition_encoder=encoder,
        scheduler=flow(num_train_timesteps=1, shift=1.0),
    )
    return TinyPipeline(pipe, {"audio_duration": 1.0, "lyrics": "a red"}, scale=1.0)


def stable_audio3() -> TinyPipeline:
    """Flow at times of a signal-to-noise ratio; the length of a sound is a token too."""
    import diffusers

    ends = {"audio_channels": 2, "patch_size": 4, "encoder_channels": 8, "latent_dim": 8, "sampling_rate": 64}
    pipe = diffusers.StableAudio3Pipeline(
        vae=frozen(diffusers.AutoencoderSAME(**ends)),
        text_encoder=make_t5(),
        tokenizer=make_tokenizer(7, ends=True),
        duration_embedder=frozen(diffusers.StableAudio3DurationEmbedder(output_dim=TEXT, fourier_dim=8)),
        transformer=denoiser("StableAudio3DiTModel", cond_token_dim=TEXT, global_cond_dim=TEXT),
        scheduler=flow(),
    )
    return TinyPipeline(pipe, {"duration": 8.0})


LEVELS = {"block_out_channels": (8, 16), "norm_num_groups": 8}  # of a U-Net of sounds, and of their autoencoder


def _heard() -> dict[str, Any]:
    """Return the parts of pipelines that draw spectrograms: a reader of texts and sounds, ends, a vocoder."""
    import diffusers
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )

    small = {"num_hidden_layers": 1, "projection_dim": 8}
    texts = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, **small}
    sounds = {"spec_size": 64, "window_size": 4, "num_mel_bins": 64, "patch_size": 2, "depths": [1, 1], **small}
    sounds |= {"num_attention_heads": [1, 1], "hidden_size": 192, "patch_embeds_hidden_size": 8}
    clap = ClapConfig(text_config={**texts, "max_position_embeddings": 24}, audio_config=sounds, projection_dim=8)
    speech = {"model_in_dim": 8, "sampling_rate": 16000, "upsample_initial_channel": 16, "normalize_before": False}
    rates = {"upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4]}
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return {
        "vae": diffusers.AutoencoderKL(in_channels=1, out_channels=1, latent_channels=4, **LEVELS, **ends),
        "text_encoder": ClapModel(clap).eval(),
        "tokenizer": make_tokenizer(16),
        "feature_extractor": ClapFeatureExtractor(feature_size=8),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        "vocoder": SpeechT5HifiGan(SpeechT5HifiGanConfig(**speech, **rates)).eval(),
    }


def audioldm2() -> TinyPipeline:
    """Sound of a U-Net with two texts, one of which a language model makes."""
    import diffusers
    from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2ProjectionModel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    # It tells T5's tokenizer by its class.
    importlib.import_module(diffusers.AudioLDM2Pipeline.__module__).T5TokenizerFast = PreTrainedTokenizerFast  # type: ignore[attr-defined]
    words = {"vocab_size": 32, "n_positions": 99, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    width = {"sample_size": 32, "layers_per_block": 1, "cross_attention_dim": (8, 16)}
    unet = diffusers.AudioLDM2UNet2DConditionModel(**LEVELS, **width, down_block_types=down, up_block_types=up)
    pipe = diffusers.AudioLDM2Pipeline(
        **_heard(),
        text_encoder_2=make_t5(),
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=8, text_encoder_1_dim=TEXT, langauge_model_dim=16),
        language_model=GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=2, **words)).eval(),
        tokenizer_2=make_tokenizer(16),
        unet=frozen(unet),
    )
    return TinyPipeline(pipe, {"audio_length_in_s": 0.016, "max_new_tokens": 4, "transcription": None})


def musicldm() -> TinyPipeline:
    """Texts are classes of a U-Net, which it joins to its times."""
    import diffusers

    kinds = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 8}
    attentive = {**ATTENTIVE, "block_out_channels": (8, 16), "cross_attention_dim": (8, 16), "norm_num_groups": 8}
    unet = denoiser("UNet2DConditionModel", **attentive, **kinds, class_embeddings_concat=True)
    heard = _heard()
    features = heard["text_encoder"].get_text_features
    # transformers 5 returns an output object, the pipeline expects its tensor.
    heard["text_encoder"].get_text_features = lambda *args, **given: features(*args, **given).pooler_output
    return TinyPipeline(diffusers.MusicLDMPipeline(**heard, unet=unet), {"audio_length_in_s": 0.016})


def ltx2() -> TinyPipeline:
    """Video with sound, which moves beside it; guidance of skipped blocks and of streams apart."""
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    texts = {"model_type": "gemma3_text", "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 16, **sizes}
    looks = {
        "model_type": "siglip_vision_model",
        "image_size": 16,
        "patch_size": 8,
        "vision_use_head": False,
        **sizes,
    }
    config = Gemma3Config(
        text_config={**texts, "num_hidden_layers": 2},
        vision_config={**looks, "num_hidden_layers": 1},
        mm_tokens_per_image=4,
        image_token_index=9,
        boi_token_index=10,
        eoi_token_index=11,
        pad_token_id=0,
    )
    streams = {
        f"{stream}_connector_{name}": value
        for stream in ("video", "audio")
        for name, value in {
            **{"num_attention_heads": 4, "attention_head_dim": 4, "num_layers": 1},
            "num_learnable_registers": None,
        }.items()
    }
    rope = {"connector_rope_base_seq_len": 32, "rope_double_precision": False}
    one = {"layers_per_block": (1,), "spatio_temporal_scaling": (True,), "downsample_type": ("spatial",)}
    decoder = {"decoder_layers_per_block": (1, 1), "upsample_factor": (1,)}
    flags = {"decoder_spatio_temporal_scaling": (True,), "decoder_inject_noise": (False, False)}
    flags |= {"upsample_residual": (False,)}
    widths = {"latent_channels": 4, "block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    vae = diffusers.AutoencoderKLLTX2Video(**widths, **one, **decoder, **flags, patch_size=1, patch_size_t=1)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    mel = {"resolution": 32, "sample_rate": 16000, "mel_hop_length": 160, "mel_bins": 8, "is_causal": True}
    form = {"norm_type": "pixel", "causality_axis": "height", "mid_block_add_attention": False}
    ends = {"in_channels": 2, "output_channels": 2, "latent_channels": 2, "attn_resolutions": None}
    rates = {"upsample_kernel_sizes": [4, 4], "upsample_factors": [2, 2]}
    kernels = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]], "output_sampling_rate": 16000}
    pipe = diffusers.LTX2Pipeline(
        scheduler=flow(),
        vae=vae,
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=4, ch_mult=(1,), num_res_blocks=1, **ends, **mel, **form
        ),
        text_encoder=Gemma3ForConditionalGeneration(config).eval(),
        tokenizer=make_tokenizer(16),
        connectors=LTX2TextConnectors(caption_channels=16, text_proj_in_factor=3, **streams, **rope).eval(),
        transformer=denoiser("LTX2VideoTransformer3DModel"),
        vocoder=LTX2Vocoder(in_channels=16, hidden_channels=32, out_channels=2, **rates, **kernels),
    )
    given = {"height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0, "max_sequence_length": 16}
    return TinyPipeline(pipe, {**given, "spatio_temporal_guidance_blocks": [1]})


SOUNDS: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (stable_audio_init, longcat_audio, ace_step, stable_audio3, audioldm2, musicldm, ltx2)
}
