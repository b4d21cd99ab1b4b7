"""Tiny pipelines of two stages, each of which draws: Stable Cascade's prior and decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_parts import frozen, make_clip, make_tokenizer
from tiny_pipelines import TEXT, TinyPipeline

PRIOR = 16  # channels of what the prior draws


def _parts(name: str, **options: Any) -> dict[str, Any]:
    """Return a U-Net of a name, and the other parts of both stages."""
    import diffusers

    levels = {"block_out_channels": (32, 32), "num_attention_heads": (2, 2), "switch_level": (False,)}
    blocks = {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "dropout": (0.0, 0.0)}
    widths = {"timestep_ratio_embedding_dim": 16, "conditioning_dim": 32, "clip_text_pooled_in_channels": TEXT}
    return {
        name: frozen(diffusers.StableCascadeUNet(**levels, **blocks, **widths, **options)),
        "tokenizer": make_tokenizer(7),
        "text_encoder": make_clip(TEXT, projected=True),
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
    }


def cascade_prior() -> TinyPipeline:
    """Draws what the decoder is given; the scheduler adds noise, and takes a time for each row."""
    import diffusers

    texts = {"clip_text_in_channels": TEXT, "clip_image_in_channels": TEXT, "clip_seq": 2}
    parts = _parts("prior", in_channels=PRIOR, out_channels=PRIOR, **texts)
    pipe = diffusers.StableCascadePriorPipeline(**parts, resolution_multiple=4.0)
    return TinyPipeline(pipe, {"height": 16, "width": 16})


def cascade_decoder() -> TinyPipeline:
    """Draws pictures from what the prior has drawn."""
    import diffusers
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    sizes = {"levels": 1, "bottleneck_blocks": 1, "embed_dim": 16, "num_vq_embeddings": 8}
    own = {"effnet_in_channels": PRIOR, "timestep_conditioning_type": ("sca",)}
    parts = _parts("decoder", in_channels=4, out_channels=4, **own)
    pipe = diffusers.StableCascadeDecoderPipeline(**parts, vqgan=PaellaVQModel(**sizes), latent_dim_scale=2.0)
    return TinyPipeline(pipe, {"image_embeddings": torch.randn(1, PRIOR, 4, 4)})


CASCADES: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker for maker in (cascade_prior, cascade_decoder)
}
