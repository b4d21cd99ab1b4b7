"""Tiny pipelines that change pictures by what is asked, and whose texts and pictures one model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tiny_images import CHAT, Looking, Processor
from tiny_other_images import glm_image
from tiny_parts import frozen, make_t5, make_tokenizer
from tiny_pipelines import TEXT, TinyPipeline, denoiser, flow, flux2, wan21
from tiny_variants import picture, varied
from torch import nn


def _reader() -> Any:
    """Return a text encoder that is given pictures too."""
    made = make_t5(num_layers=2)
    made.__class__ = Looking
    return made


def _dreamlite(**options: Any) -> TinyPipeline:
    """Return a pipeline whose pictures lie to the right of the noisy one; it runs all branches at any scale."""
    import diffusers

    unet = diffusers.DreamLiteUNetModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=TEXT,
        attention_head_dim=8,
        transformer_layers_per_block=2,
        addition_embed_type="time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16,
    )
    levels = {"encoder_block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    vae = diffusers.AutoencoderTiny(**levels, num_encoder_blocks=(1,), num_decoder_blocks=(1,))
    pipe = diffusers.DreamLitePipeline(
        text_encoder=_reader(),
        tokenizer=make_tokenizer(9),
        processor=Processor(),
        vae=frozen(vae),
        unet=frozen(unet),
        scheduler=flow(use_dynamic_shifting=True),
    )
    for kind in ("generate", "edit"):
        setattr(pipe, f"prompt_template_encode_{kind}", "a a {}")
        setattr(pipe, f"prompt_template_encode_{kind}_start_idx", 1)
    return TinyPipeline(pipe, {"height": 16, "width": 16, "max_sequence_length": 7, **options}, listed=False)


def dreamlite() -> TinyPipeline:
    """From texts; the half at the right is empty."""
    return _dreamlite()


def dreamlite_edit() -> TinyPipeline:
    """Three branches; a picture lies beside the noisy one."""
    return _dreamlite(image=picture(16))


class _Looking(nn.Module):
    """A language model of which the last layer is read where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, TEXT)
        layers = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(TEXT, TEXT)])})
        self.model = nn.ModuleDict({"language_model": layers})

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""
        return self.words.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return self.words.weight.device

    def forward(self, input_ids: Any, pixel_values: Any = 0.0, **others: Any) -> Any:
        """Run the layers."""
        last = self.model.get_submodule("language_model.layers.0")
        return last(self.words(input_ids) + pixel_values)


def _joyimage(pipeline: str, transformer: str, **options: Any) -> TinyPipeline:
    made = varied(
        wan21(),
        pipeline,
        {
            "transformer": denoiser(transformer, text_dim=TEXT),
            "text_encoder": frozen(_Looking()),
            "tokenizer": make_tokenizer(9),
            "processor": Processor(),
            "scheduler": flow(shift=4.0),
        },
    )
    for kind in ("image", "multiple_images"):
        made.pipe.prompt_template_encode[kind], made.pipe.prompt_template_encode_start_idx[kind] = "a a {}", 1
    for part in ("vae_image_processor", "image_processor"):
        processor: Any = getattr(made.pipe, part, None)
        if hasattr(processor, "get_default_height_width"):  # of a thousand pixels
            processor.get_default_height_width = lambda *_: (16, 16)
    return replace(made, options={"height": 16, "width": 16, **options})


def joyimage() -> TinyPipeline:
    """Begins with a picture, which comes before the noisy one."""
    return _joyimage("JoyImageEditPipeline", "JoyImageEditTransformer3DModel", image=picture(16))


def joyimage_plus() -> TinyPipeline:
    """Pictures after the noisy one."""
    pictures = [picture(16), picture(16).rotate(90)]
    return _joyimage("JoyImageEditPlusPipeline", "JoyImageEditPlusTransformer3DModel", images=pictures)


def flux2_klein_kv() -> TinyPipeline:
    """Keys and values of a picture's tokens are kept from the first step on."""
    parts = {"transformer": denoiser("Flux2Transformer2DModel", guidance_embeds=False)}
    made = varied(flux2(), "Flux2KleinKVPipeline", {**parts, "tokenizer": make_tokenizer(7, CHAT)})
    made.pipe.image_processor.check_image_input = lambda _: None  # that it is not smaller than 64 pixels
    return replace(made, options={**made.options, "image": picture()}, scale=None)


def glm_image_edit() -> TinyPipeline:
    """Keys and values of a picture are kept before the first step, by a call of the model at time 0."""
    made = glm_image()
    tokens = {"prior_token_image_ids": [torch.arange(16)], "source_image_grid_thw": [torch.tensor([[1, 4, 4]])]}
    return replace(made, options={**made.options, **tokens, "image": [picture()]})


EDITS: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (dreamlite, dreamlite_edit, joyimage, joyimage_plus, flux2_klein_kv, glm_image_edit)
}
