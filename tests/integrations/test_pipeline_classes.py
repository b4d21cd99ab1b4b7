"""Whole pipelines of several families from tiny random parts: calibrated, applied, sampled, removed."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

import diffusers
from tiny_diffusers import flux, frozen, make_t5, make_vae

import l2c
from l2c.integrations.diffusers import applied
from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
from l2c.policies.context import PolicyContext

STEPS = 4


def lumina2(tokenizer):
    """Time rises, the prediction's sign is turned."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=24,
    )
    pipe = diffusers.Lumina2Pipeline(
        transformer=frozen(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(4, scaling_factor=1.0, shift_factor=0.0),
        text_encoder=make_t5(num_layers=2),
        tokenizer=tokenizer(7),
    )
    return pipe, {"max_sequence_length": 7, "height": 16, "width": 16, "cfg_normalization": False}


def sana(tokenizer):
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
    )
    pipe = diffusers.SanaPipeline(
        tokenizer=tokenizer(7),
        text_encoder=make_t5(num_layers=2),
        vae=diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            attention_head_dim=4,
        ),
        transformer=frozen(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    options = {"use_resolution_binning": False, "complex_human_instruction": None, "height": 32, "width": 32}
    return pipe, {**options, "max_sequence_length": 7, "clean_caption": False}


def z_image(tokenizer):
    """Noisy inputs, conditions and predictions are lists; prompts differ in length; time rises."""
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    words = tokenizer(7)
    words.chat_template = "{{ messages[0]['content'] }}"
    pipe = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(4, scaling_factor=1.0, shift_factor=0.0),
        text_encoder=make_t5(num_layers=2),
        tokenizer=words,
        transformer=frozen(transformer),
    )
    return pipe, {"max_sequence_length": 7, "height": 16, "width": 16, "guidance_scale": 0.0}  # off


def ltx(tokenizer):
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=24,
    )
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    )
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=make_t5(num_layers=2),
        tokenizer=tokenizer(7),
        transformer=frozen(transformer),
    )
    return pipe, {"max_sequence_length": 7, "height": 32, "width": 32, "num_frames": 5}


def cogvideox(tokenizer):
    """Time runs over whole numbers, blocks return (image, text)."""
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=24,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=7,
    )
    autoencoder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=tokenizer(7),
        text_encoder=make_t5(num_layers=2),
        vae=autoencoder,
        transformer=frozen(transformer),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=False),
    )
    return pipe, {"max_sequence_length": 7, "height": 16, "width": 16, "num_frames": 8}


PIPELINES = {maker.__name__: maker for maker in (flux, lumina2, sana, z_image, ltx, cogvideox)}


@pytest.mark.parametrize("name", PIPELINES)
def test_calibrated_applied_sampled_removed(name, tokenizer, random_rows):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, options = PIPELINES[name](tokenizer)
    pipe.set_progress_bar_config(disable=True)
    backbone = pipeline_backbone(pipe, ["a red cat", "blue dog"], num_evaluations=STEPS, options=options)
    given = noise = torch.randn(1, *backbone.input_shape, generator=torch.Generator().manual_seed(0))

    if name == "z_image":  # the pipeline adds the frame's axis
        given = noise.squeeze(2)

    def latents():
        call = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "latent", **options}
        drawn = pipe("a red cat", latents=given.clone(), **call)
        return getattr(drawn, "images", None) if hasattr(drawn, "images") else drawn.frames

    plain = latents()
    sampler = l2c.Sampler(backbone, solver="pipeline", num_evaluations=STEPS)
    torch.testing.assert_close(sampler.sample([0], noise=noise).reshape(plain.shape), plain, rtol=1e-3, atol=1e-3)
    rows = random_rows(STEPS, backbone.num_layers, seed=1)
    graph = PolicyContext.of(sampler).blank.replace(rows=rows, routed=None)
    ours = l2c.Sampler(backbone, graph=graph).sample([0], noise=noise)
    with applied(pipe, graph):
        for _ in range(2):
            cached = latents()
            torch.testing.assert_close(cached, ours.reshape(plain.shape), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(cached, plain, rtol=1e-3, atol=1e-3)
    assert torch.equal(latents(), plain)
