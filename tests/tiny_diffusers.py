"""Tiny random models and pipelines of the diffusers families, and what a pipeline would call them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tiny_parts import frozen, make_clip, make_t5, make_tokenizer, make_vae
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One model with its inputs.

    Attributes:
        model: frozen, no two weights alike.
        x: the noisy input.
        conditions: its other arguments, the timestep aside.
        timesteps: of a trajectory, as the pipeline gives them to the model.

    """

    model: nn.Module
    x: Tensor
    conditions: dict[str, Any]
    timesteps: tuple[float, ...] = (951.0, 751.0, 501.0, 251.0, 101.0, 1.0)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t)
        return self.model(hidden_states=x, timestep=times, return_dict=False, **self.conditions)[0]

    def trajectory(self, steps: range | None = None) -> list[Tensor]:
        """Return the output of each evaluation of a simple walk, which feeds every output back."""
        x, outputs = self.x, []
        for e in steps or range(len(self.timesteps)):
            output = self(x, self.timesteps[e])
            outputs.append(output)
            x = x - 0.15 * output[:, : x.shape[1]]
        return outputs


class UNetFamily(Family):
    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.model(x, torch.tensor(t), return_dict=False, **self.conditions)[0]


def _text(*shape: int) -> Tensor:
    return torch.randn(*shape)


def _dit() -> Family:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3, sample_size=8
    )
    return Family(frozen(model), torch.randn(2, 4, 8, 8), {"class_labels": torch.tensor([3, 1000])})


def _pixart() -> Family:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        cross_attention_dim=32,
        sample_size=8,
        caption_channels=24,
        use_additional_conditions=False,
    )
    conditions = {
        "encoder_hidden_states": _text(2, 7, 24),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Family(frozen(model), torch.randn(2, 4, 8, 8), conditions)


def _sd3() -> Family:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    conditions = {"encoder_hidden_states": _text(2, 7, 24), "pooled_projections": _text(2, 16)}
    return Family(frozen(model), torch.randn(2, 4, 8, 8), conditions)


def _flux() -> Family:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    conditions = {
        "encoder_hidden_states": _text(2, 7, 24),
        "pooled_projections": _text(2, 16),
        "txt_ids": torch.zeros(7, 3),
        "img_ids": torch.randint(4, (16, 3)).float(),
    }
    times = (1.0, 0.8, 0.6, 0.45, 0.3, 0.1)
    return Family(frozen(model), torch.randn(2, 16, 4), conditions, times)


def _sana() -> Family:
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
    )
    return Family(frozen(model), torch.randn(2, 4, 8, 8), {"encoder_hidden_states": _text(2, 7, 24)})


def _hunyuan() -> Family:
    """HunyuanDiT has the long skips of U-ViT."""
    from diffusers import HunyuanDiT2DModel

    model = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=24,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=5,
        text_len_t5=6,
        use_style_cond_and_image_meta_size=False,
    )
    conditions = {
        "encoder_hidden_states": _text(2, 5, 24),
        "text_embedding_mask": torch.ones(2, 5),
        "encoder_hidden_states_t5": _text(2, 6, 16),
        "text_embedding_mask_t5": torch.ones(2, 6),
    }
    return Family(frozen(model), torch.randn(2, 4, 8, 8), conditions)


def _unet() -> Family:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return UNetFamily(frozen(model), torch.randn(2, 4, 8, 8), {"encoder_hidden_states": _text(2, 7, 24)})


FAMILIES: dict[str, Callable[[], Family]] = {
    "dit": _dit,
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "sana": _sana,
    "hunyuan": _hunyuan,
    "unet": _unet,
}


def _dit_pipeline() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline

    return DiTPipeline(transformer=_dit().model, vae=make_vae(), scheduler=DDIMScheduler())


def _pixart_pipeline() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    return PixArtSigmaPipeline(
        tokenizer=make_tokenizer(7),
        text_encoder=make_t5(),
        vae=make_vae(),
        transformer=_pixart().model,
        scheduler=DPMSolverMultistepScheduler(),
    )


def _stable_diffusion(unet: Any = None) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_clip(24),
        tokenizer=make_tokenizer(7),
        unet=_unet().model if unet is None else unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "dit": _dit_pipeline,
    "pixart": _pixart_pipeline,
    "stable_diffusion": _stable_diffusion,
}


def attentive_pipeline() -> Any:
    """Return a text-to-image pipeline most of whose MACs lie in its spatial transformers."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=12,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return _stable_diffusion(frozen(unet))


FLUX = {
    **{"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2},
    **{"joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8)},
}


def flux(tokenizer: Callable[[int], Any], **scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """Return a tiny Flux and the options of its call."""
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(**FLUX)
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=make_vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        text_encoder=make_clip(16),
        tokenizer=tokenizer(7),
        text_encoder_2=make_t5(num_layers=2),
        tokenizer_2=tokenizer(7),
        transformer=frozen(transformer),
    )
    return pipe, {"max_sequence_length": 7, "height": 8, "width": 8}


def sd3(tokenizer: Callable[[int], Any], **scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """Return a tiny Stable Diffusion 3 and the options of its call."""
    import diffusers

    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=_sd3().model,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=make_vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        text_encoder=make_clip(8, projected=True),
        tokenizer=tokenizer(7),
        text_encoder_2=make_clip(8, projected=True),
        tokenizer_2=tokenizer(7),
        text_encoder_3=make_t5(num_layers=2),
        tokenizer_3=tokenizer(7),
    )
    return pipe, {"max_sequence_length": 7, "height": 8, "width": 8}
