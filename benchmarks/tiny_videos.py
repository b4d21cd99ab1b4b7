"""Tiny pipelines of videos that start from pictures or videos, are steered by them, or step in a way of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from tiny_parts import make_t5, make_tokenizer, make_vae, make_vision
from tiny_pipelines import (
    GLOBAL,
    TEXT,
    TinyPipeline,
    cogvideox,
    denoiser,
    flow,
    hunyuan_video,
    ltx,
    sd,
    wan21,
    wan22,
)
from tiny_variants import mask, picture, varied

VISION = 16  # width of pictures' features
FRAMES = 5


def moving(frames: int = FRAMES, size: int = 16) -> list[Any]:
    """Return a video of a square that moves."""
    from PIL import Image

    made = [picture(size) for _ in range(frames)]
    for frame, image in enumerate(made):
        image.paste(Image.new("RGB", (size // 2, size // 2), "green"), (frame, frame))
    return made


def _features() -> dict[str, Any]:
    """Return an encoder of pictures and what prepares them."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    prepare = CLIPImageProcessor(crop_size=224, size=224)
    return {"image_encoder": make_vision(VISION, kind=CLIPVisionModel), "image_processor": prepare}


def _wan(pipeline: str, name: str = "WanTransformer3DModel", *, pictures: bool = False, **changes: Any) -> Any:
    """Return a maker of a pipeline of Wan's parts with a denoiser of its own, which is given features of pictures."""
    usual = {"in_channels": 16, "out_channels": 16, "text_dim": TEXT, "num_layers": 3}
    usual |= {"in_channels": 36, "image_dim": VISION, "added_kv_proj_dim": 24} if pictures else {}
    parts = {"transformer": denoiser(name, **{**usual, **changes}), **(_features() if pictures else {})}
    return lambda **options: varied(wan21(), pipeline, parts, **{"num_frames": FRAMES, **options})


def wan_i2v() -> TinyPipeline:
    """Latents of a picture beside the noisy ones, and its features."""
    return _wan("WanImageToVideoPipeline", pictures=True)(image=picture(16))


def wan22_i2v() -> TinyPipeline:
    """Two denoisers, latents of a picture beside the noisy ones."""
    sizes = {"in_channels": 36, "out_channels": 16, "text_dim": TEXT, "num_layers": 3}
    parts = {name: denoiser("WanTransformer3DModel", **sizes) for name in ("transformer", "transformer_2")}
    given = {"image": picture(16), "num_frames": FRAMES}
    return varied(wan22(), "WanImageToVideoPipeline", {**parts, "boundary_ratio": 0.8}, **given)


def wan_ti2v() -> TinyPipeline:
    """Timesteps of each token."""
    return varied(wan21(), "WanPipeline", {"expand_timesteps": True}, num_frames=FRAMES)


def wan_ti2v_image() -> TinyPipeline:
    """Timesteps of each token, 0 at those of a picture, which stay as they are."""
    given = {"image": picture(16), "num_frames": FRAMES}
    return varied(wan21(), "WanImageToVideoPipeline", {"expand_timesteps": True}, **given)


def wan_vace() -> TinyPipeline:
    """Blocks of their own for a control; takes one prompt, not a list."""
    made = _wan("WanVACEPipeline", "WanVACETransformer3DModel", vace_in_channels=96)
    return replace(made(video=moving(), mask=[mask(16)] * FRAMES), listed=False)


def wan_animate() -> TinyPipeline:
    """Poses and faces; a video is drawn segment by segment. Its layers hold few of the MACs."""
    sizes = {"num_layers": 4, "in_channels": 36, "latent_channels": 16, "image_dim": VISION, "rope_max_seq_len": 32}
    parts = {"transformer": denoiser("WanAnimateTransformer3DModel", out_channels=16, text_dim=TEXT, **sizes)}
    given = {"image": picture(16), "pose_video": moving(), "face_video": moving(), "segment_frame_length": FRAMES}
    return varied(wan21(), "WanAnimatePipeline", {**parts, **_features()}, **given)


def wan_v2v() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(wan21(), "WanVideoToVideoPipeline", video=moving(), strength=0.75)


def lucy() -> TinyPipeline:
    """Latents of a video beside the noisy ones."""
    return _wan("LucyEditPipeline", in_channels=32)(video=moving())


def chronoedit() -> TinyPipeline:
    """Edits a picture by way of a video."""
    return _wan("ChronoEditPipeline", "ChronoEditTransformer3DModel", pictures=True)(image=picture(16))


def skyreels() -> TinyPipeline:
    """Wan's blocks."""
    return _wan("SkyReelsV2Pipeline", "SkyReelsV2Transformer3DModel")()


def skyreels_df() -> TinyPipeline:
    """Timesteps and schedulers of each frame."""
    return _wan("SkyReelsV2DiffusionForcingPipeline", "SkyReelsV2Transformer3DModel")()


def skyreels_df_i2v() -> TinyPipeline:
    """Timesteps and schedulers of each frame but that of a picture."""
    made = _wan("SkyReelsV2DiffusionForcingImageToVideoPipeline", "SkyReelsV2Transformer3DModel")
    return made(image=picture(16))


def cosmos25() -> TinyPipeline:
    """Given the noise level; frames of a picture stay, and have a level of their own."""
    import diffusers

    sys.modules[diffusers.Cosmos2_5_PredictBasePipeline.__module__].__dict__["CosmosSafetyChecker"] = Unchecked
    sizes = {"out_channels": 16, "text_embed_dim": 2 * TEXT, "num_layers": 3}
    parts = {
        "transformer": denoiser("CosmosTransformer3DModel", in_channels=17, **sizes),
        "tokenizer": make_tokenizer(16, "{{ messages[-1]['content'][0]['text'] }}"),
        "text_encoder": make_t5(num_layers=2),
    }
    given = {"num_frames": FRAMES, "height": 32, "width": 32, "image": picture(32)}
    return varied(wan21(), "Cosmos2_5_PredictBasePipeline", parts, **given)


class Unchecked:
    """A safety checker that lets everything pass."""

    def to(self, device: Any) -> None:
        """Stay."""

    def check_text_safety(self, text: str) -> bool:
        """Pass."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """Pass."""
        return video


def sana_video() -> TinyPipeline:
    """Linear attention over frames."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    sizes = {"in_channels": 16, "out_channels": 16, "caption_channels": TEXT, "num_layers": 3}
    parts = {
        "transformer": denoiser("SanaVideoTransformer3DModel", **sizes),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": make_t5(num_layers=2),
    }
    given = {"frames": FRAMES, "use_resolution_binning": False, "complex_human_instruction": None}
    return varied(wan21(), "SanaVideoPipeline", parts, **given, height=32, width=32)


def sana_video_i2v() -> TinyPipeline:
    """Timesteps of each token with the axes of the latents, 0 at those of a picture."""
    return varied(sana_video(), "SanaImageToVideoPipeline", image=picture(32))


def ltx_i2v() -> TinyPipeline:
    """Timesteps of each token; those of a picture stay, and the scheduler is given the others as frames."""
    return varied(ltx(), "LTXImageToVideoPipeline", image=picture(32))


def ltx_condition() -> TinyPipeline:
    """Timesteps of each token, also of a step; those of a picture are noised a little."""
    return varied(ltx(), "LTXConditionPipeline", image=picture(32), frame_index=0)


def ltx_condition_text() -> TinyPipeline:
    """Timesteps of each token of a step, which turns the prediction's sign."""
    return varied(ltx(), "LTXConditionPipeline")


def cogvideox_dpm() -> TinyPipeline:
    """Schedules by steps that are given the one before, and add noise."""
    from diffusers import CogVideoXDPMScheduler

    scheduler = CogVideoXDPMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return varied(cogvideox(), "CogVideoXPipeline", {"scheduler": scheduler})


def cogvideox_v2v() -> TinyPipeline:
    """Begins in the middle of the schedule."""
    return varied(cogvideox(), "CogVideoXVideoToVideoPipeline", video=moving(9), strength=0.75)


def cogvideox_control() -> TinyPipeline:
    """Latents of a control beside the noisy ones."""
    sizes = {"text_embed_dim": TEXT, "in_channels": 8, "sample_width": 2, "sample_height": 2, "sample_frames": 9}
    parts = {"transformer": denoiser("CogVideoXTransformer3DModel", **sizes)}
    return varied(cogvideox(), "CogVideoXFunControlPipeline", parts, control_video=moving(9))


def consisid() -> TinyPipeline:
    """Latents of a picture beside the noisy ones, and features of a face; needs the package OpenCV."""
    small = {"sample_width": 2, "sample_height": 2, "sample_frames": 9, "text_embed_dim": TEXT}
    transformer = denoiser("ConsisIDTransformer3DModel", **small, in_channels=8, out_channels=4)
    face = {"id_vit_hidden": [torch.ones(1, 2, 2)], "id_cond": torch.ones(1, 2)}
    return varied(cogvideox(), "ConsisIDPipeline", {"transformer": transformer}, image=picture(16), **face)


def skyreels_i2v() -> TinyPipeline:
    """Latents of a picture beside the noisy ones, and its features."""
    return _wan("SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Transformer3DModel", pictures=True)(image=picture(16))


def _hunyuan(name: str = "HunyuanVideoTransformer3DModel", **changes: Any) -> dict[str, Any]:
    usual = {"text_embed_dim": TEXT, "pooled_projection_dim": GLOBAL, "guidance_embeds": True}
    return {"transformer": denoiser(name, **{**usual, **changes})}


def hunyuan_i2v() -> TinyPipeline:
    """Latents of a picture are the first frame, which stays; the picture is in the prompt too."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 16, **sizes, "num_hidden_layers": 3},
        vision_config={"model_type": "clip_vision_model", "image_size": 224, "patch_size": 112, **sizes},
        image_token_index=9,
        image_seq_length=4,
        pad_token_id=0,
    )
    parts = {
        "text_encoder": LlavaForConditionalGeneration(config).eval(),
        "image_processor": CLIPImageProcessor(crop_size=224, size=224),
        **_hunyuan(text_embed_dim=16, image_condition_type="token_replace"),
    }
    places = {"image_emb_start": 0, "image_emb_end": 4, "image_emb_len": 4, "double_return_token_id": 8}
    template = {"template": "{}", "crop_start": 0, **places}
    given = {"image": picture(16), "prompt_template": template, "max_sequence_length": 12}
    return varied(hunyuan_video(), "HunyuanVideoImageToVideoPipeline", parts, **given)


def hunyuan_skyreels() -> TinyPipeline:
    """Latents of a picture beside the noisy ones."""
    given = {"image": picture(16), "true_cfg_scale": 1.0}
    return varied(hunyuan_video(), "HunyuanSkyreelsImageToVideoPipeline", _hunyuan(in_channels=8), **given)


def framepack() -> TinyPipeline:
    """Draws a video section by section from its end, each beside the ones before."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {
        **_hunyuan("HunyuanVideoFramepackTransformer3DModel"),
        "image_encoder": SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **sizes)).eval(),
        "feature_extractor": SiglipImageProcessor(size={"height": 16, "width": 16}),
    }
    given = {"image": picture(32), "height": 32, "width": 32, "num_frames": 9, "latent_window_size": 3}
    return varied(hunyuan_video(), "HunyuanVideoFramepackPipeline", parts, **given)


def hunyuan15() -> TinyPipeline:
    """Guided by a guider. Its layers hold few of the MACs."""
    from diffusers import AutoencoderKLHunyuanVideo15, ClassifierFreeGuidance

    sizes = {"in_channels": 9, "text_embed_dim": TEXT, "text_embed_2_dim": TEXT}
    parts = {
        "transformer": denoiser("HunyuanVideo15Transformer3DModel", **sizes),
        "vae": AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(16,) * 5, layers_per_block=1),
        "guider": ClassifierFreeGuidance(guidance_scale=3.0),
        "text_encoder": make_t5(num_layers=3),
        "text_encoder_2": make_t5(),
        "tokenizer": make_tokenizer(16, "{{ messages[1]['content'] }}"),
        "tokenizer_2": make_tokenizer(16),
    }
    made = replace(varied(hunyuan_video(), "HunyuanVideo15Pipeline", parts, height=32, width=32), scale=None)
    made.pipe.prompt_template_encode_start_idx, made.pipe.vision_num_semantic_tokens = 1, 3
    made.pipe.tokenizer_max_length, made.pipe.tokenizer_2_max_length = 8, 8
    return made


def latte() -> TinyPipeline:
    """Spatial and temporal blocks in turn."""
    parts = {"transformer": denoiser("LatteTransformer3DModel", caption_channels=TEXT), "text_encoder": make_t5()}
    given = {"video_length": 2, "height": 8, "width": 8, "clean_caption": False, "mask_feature": False}
    return varied(sd(), "LattePipeline", {**parts, "vae": make_vae()}, **given)


def allegro() -> TinyPipeline:
    """Frames and their sizes."""
    from diffusers import AutoencoderKLAllegro

    blocks = {"down_block_types": ("AllegroDownBlock3D",) * 4, "up_block_types": ("AllegroUpBlock3D",) * 4}
    vae = AutoencoderKLAllegro(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, **blocks)
    sizes = {"caption_channels": TEXT, "sample_width": 2, "sample_height": 2, "sample_frames": 2}
    parts = {"transformer": denoiser("AllegroTransformer3DModel", **sizes), "text_encoder": make_t5(), "vae": vae}
    given = {"num_frames": 8, "height": 16, "width": 16, "clean_caption": False, "max_sequence_length": 7}
    return varied(sd(), "AllegroPipeline", parts, **given, output_type="latent")  # it decodes tiles of large videos


def _kandinsky(pipeline: str, transformer: Mapping[str, Any], **options: Any) -> TinyPipeline:
    """Return a pipeline of Kandinsky 5, which has its texts from a tokenizer of pictures too."""
    sizes = {"in_text_dim": TEXT, "in_text_dim2": GLOBAL, **transformer}
    parts = {
        "transformer": denoiser("Kandinsky5Transformer3DModel", **sizes),
        "text_encoder": make_t5(num_layers=2),
        "tokenizer": WithPictures(make_tokenizer(16)),
    }
    made = varied(hunyuan_video(), pipeline, parts, **options)
    made.pipe.prompt_template, made.pipe.prompt_template_encode_start_idx = "a {}", 1
    return made


class WithPictures:
    """A tokenizer that would be given pictures too."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **given: Any) -> Any:
        """Return tokens."""
        return self.tokenizer(text, **given)

    def decode(self, *args: Any, **given: Any) -> Any:
        """Return a text."""
        return self.tokenizer.decode(*args, **given)


def kandinsky5() -> TinyPipeline:
    """Latents whose channels come last."""
    return _kandinsky("Kandinsky5T2VPipeline", {})


def kandinsky5_i2v() -> TinyPipeline:
    """First frame that stays, channels that say so; the scheduler is given the other frames."""
    return _kandinsky("Kandinsky5I2VPipeline", {"visual_cond": True}, image=picture(16), num_frames=17)


def easyanimate() -> TinyPipeline:
    """Texts and frames in one sequence; a chat's texts."""
    from diffusers import AutoencoderKLMagvit

    downs = ("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3)
    ups = ("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3)
    sizes = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 2}
    parts = {
        "transformer": denoiser("EasyAnimateTransformer3DModel", text_embed_dim=TEXT),
        "text_encoder": make_t5(num_layers=3),
        "vae": AutoencoderKLMagvit(latent_channels=4, down_block_types=downs, up_block_types=ups, **sizes),
        "tokenizer": make_tokenizer(16, "{{ messages[0]['content'][0]['text'] }}"),
        "scheduler": flow(),
    }
    given = {"num_frames": FRAMES, "height": 16, "width": 16, "negative_prompt": [""]}
    return varied(sd(), "EasyAnimatePipeline", parts, **given)


def helios() -> TinyPipeline:
    """Draws a video chunk by chunk, each beside the history of those before."""
    from diffusers import HeliosScheduler

    sizes = {"in_channels": 16, "out_channels": 16, "text_dim": TEXT}
    parts = {
        "transformer": denoiser("HeliosTransformer3DModel", **sizes),
        "scheduler": HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True, scheduler_type="unipc"),
    }
    chunks = {"history_sizes": [4, 1, 1], "num_latent_frames_per_chunk": 2}
    return varied(wan21(), "HeliosPipeline", parts, num_frames=9, **chunks)


def motif() -> TinyPipeline:
    """Guided by a guider; channels for a picture beside the noisy ones."""
    from diffusers import ClassifierFreeGuidance

    sizes = {"in_channels": 33, "out_channels": 16, "text_embed_dim": TEXT}
    parts = {
        "transformer": denoiser("MotifVideoTransformer3DModel", **sizes),
        "guider": ClassifierFreeGuidance(guidance_scale=3.0),
        "text_encoder": make_t5(num_layers=2),
        "scheduler": flow(),
    }
    return replace(varied(wan21(), "MotifVideoPipeline", parts, num_frames=FRAMES), scale=None)


def anyflow() -> TinyPipeline:
    """Flow map, whose model is given the time to which it steps too."""
    from diffusers import FlowMapEulerDiscreteScheduler

    sizes = {"in_channels": 16, "out_channels": 16, "text_dim": TEXT, "num_layers": 3}
    parts = {
        "transformer": denoiser("AnyFlowTransformer3DModel", **sizes),
        "scheduler": FlowMapEulerDiscreteScheduler(),
    }
    return varied(wan21(), "AnyFlowPipeline", parts, num_frames=FRAMES)


def kandinsky6() -> TinyPipeline:
    """Video without its sound, whose blocks do not run."""
    from diffusers import Kandinsky6TI2VAPipeline
    from tiny_images import Processor

    parts = hunyuan_video().pipe
    pipe = Kandinsky6TI2VAPipeline(
        transformer=denoiser(
            "Kandinsky6Transformer3DModel", in_text_dim=TEXT, in_text_dim2=GLOBAL, num_visual_blocks=4
        ),
        vae=parts.vae,
        text_encoder=make_t5(),
        tokenizer=Processor(),
        text_encoder_2=parts.text_encoder_2,
        tokenizer_2=parts.tokenizer_2,
        scheduler=flow(),
    )
    sizes = {"height": 16, "width": 16, "num_frames": FRAMES, "sample_audio": False, "max_sequence_length": 7}
    return TinyPipeline(pipe, sizes)


def anyflow_far() -> TinyPipeline:
    """Frames one after the other, from keys and values of those before."""
    from diffusers import FlowMapEulerDiscreteScheduler

    sizes = {"in_channels": 16, "out_channels": 16, "text_dim": TEXT, "num_layers": 3, "chunk_partition": [1, 1]}
    parts = {
        "transformer": denoiser("AnyFlowFARTransformer3DModel", **sizes),
        "scheduler": FlowMapEulerDiscreteScheduler(),
    }
    return varied(wan21(), "AnyFlowFARPipeline", parts, num_frames=FRAMES, height=32, width=32)


def animatediff() -> TinyPipeline:
    """U-Net of pictures with a motion adapter."""
    from diffusers import MotionAdapter

    parts = {"unet": denoiser("UNetMotionModel", cross_attention_dim=TEXT), "motion_adapter": MotionAdapter()}
    return varied(sd(), "AnimateDiffPipeline", parts, num_frames=2)


VIDEOS: dict[str, Callable[[], TinyPipeline]] = {
    maker.__name__: maker
    for maker in (
        *(wan_i2v, wan22_i2v, wan_ti2v, wan_ti2v_image, wan_vace, wan_animate, wan_v2v, lucy, chronoedit),
        *(skyreels, skyreels_df, skyreels_df_i2v, cosmos25, sana_video, sana_video_i2v),
        skyreels_i2v,
        *(ltx_i2v, ltx_condition, ltx_condition_text, cogvideox_dpm, cogvideox_v2v, cogvideox_control),
        consisid,
        *(hunyuan_i2v, hunyuan_skyreels, framepack, hunyuan15, latte, allegro),
        *(kandinsky5, kandinsky5_i2v, easyanimate, helios, motif, kandinsky6, anyflow, anyflow_far, animatediff),
    )
}
