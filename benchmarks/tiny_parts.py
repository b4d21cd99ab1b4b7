"""Tiny random text encoders, tokenizers and autoencoders, of which tests and benchmarks build whole pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "cat", "blue", "dog")


def frozen(model: nn.Module) -> nn.Module:
    """Return a model for inference, no two of its weights alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval().requires_grad_(False)


def make_vae(latent_channels: int = 4, *, levels: int = 1, **options: Any) -> Any:
    """Return an autoencoder of images whose latents are as large as they, or half as large for each further level."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=8,
        **options,
    )


def make_t5(num_layers: int = 1, width: int = 24) -> Any:
    """Return a text encoder with hidden states (N, T, width)."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=8, d_model=width, d_kv=8, d_ff=16, num_layers=num_layers, num_heads=2)
    return T5EncoderModel(config).eval()


def make_clip(width: int, *, projected: bool = False, length: int = 7) -> Any:
    """Return a text encoder of `length` tokens with a pooled output (N, width), after a projection if `projected`."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2 if projected else 1,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        projection_dim=width,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def make_qwen_vl(width: int = 12, num_layers: int = 2) -> Any:
    """Return a text encoder with hidden states (N, T, width), its own `language_model`, and places of three axes."""
    from transformers import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": num_layers, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e4}
    encoder = Qwen3VLTextModel(Qwen3VLTextConfig(vocab_size=8, **sizes, **heads, rope_parameters=rope)).eval()
    encoder.__dict__["language_model"] = encoder  # beside its modules, which it is not one of
    return encoder


def make_vision(width: int, *, kind: Any = None) -> Any:
    """Return an encoder of pictures of 224 pixels with features (N, width), of a class of transformers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        intermediate_size=16,
        patch_size=112,
    )
    return (CLIPVisionModelWithProjection if kind is None else kind)(config).eval()


def make_tokenizer(length: int, template: str | None = None, *, ends: bool = False) -> Any:
    """Return a tokenizer of a few words for prompts of `length` tokens.

    Args:
        length: number of tokens.
        template: of a chat.
        ends: put the token `</s>` after each text, also after an empty one.

    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )
    made.chat_template = template
    return made
