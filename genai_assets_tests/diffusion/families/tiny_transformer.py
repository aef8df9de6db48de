"""Pipelines of the flow families from their stock classes: of one block, random, the same at every call, with nothing
downloaded. Letters are their tokens."""

import inspect
import re
from pathlib import Path
from typing import Any

import torch

from genai_assets_tests.diffusion.families.tiny_clip import CHARACTERS, clip_config, clip_tokenizer


def save_stable_diffusion_3(folder: Path) -> None:
    """Save a ``StableDiffusion3Pipeline``."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,  # the last block drops the prompt: with one alone, no block would have all its projections
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        transformer=_stirred(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(),
        text_encoder=CLIPTextModelWithProjection(clip_config(hidden_size=8, projection_dim=8)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(hidden_size=8, projection_dim=8)),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    ).save_pretrained(folder)


def save_flux(folder: Path, *, guidance_embeds: bool = True) -> None:
    """Save a ``FluxPipeline``, like FLUX.1 dev or, without ``guidance_embeds``, schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    FluxPipeline(
        transformer=_stirred(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=guidance_embeds, shift=3.0 if guidance_embeds else 1.0
        ),
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(clip_config(hidden_size=16, projection_dim=8)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    ).save_pretrained(folder)


def save_sana(folder: Path) -> None:
    """Save a ``SanaPipeline``."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    )
    vocabulary = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *CHARACTERS)
    tokenizer = GemmaTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}, merges=[])
    # The pipeline's instruction is long: its words are tokens, too, to spare time.
    instruction = " ".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
    tokenizer.add_tokens(sorted(set(re.findall(r"\w{3,}", instruction))))
    reader = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    SanaPipeline(
        transformer=_stirred(transformer),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
        ),
        vae=autoencoder,
        text_encoder=Gemma2Model(reader),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def _stirred(denoiser: Any) -> Any:
    """The denoiser with its weights moved: some begin at zero, and then every prompt and level gives the same."""
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    return denoiser


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(
        **blocks,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _t5_words() -> list[tuple[str, float]]:
    return [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((character, -3.0) for character in CHARACTERS),
    ]


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=len(_t5_words()), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=_t5_words(), extra_ids=0)


def save_z_image(folder: Path) -> None:
    """Save a ``ZImagePipeline``."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    tokenizer = _qwen_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    reader = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    ZImagePipeline(
        transformer=_stirred(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(),
        text_encoder=Qwen3Model(reader),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def save_qwen_image(folder: Path) -> None:
    """Save a ``QwenImagePipeline``."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,  # the last block's prompt goes nowhere
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 2.0, 1.5, 0.8],
    )
    # The pipeline cuts its request away by the number of tokens that it has in the real tokenizer, a word each.
    request = (
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
        "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
    )
    tokenizer = _qwen_tokenizer(sorted(set(re.findall(r"<\|\w+\|>| ?\w{2,}", request))))
    reader = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    QwenImagePipeline(
        transformer=_stirred(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=Qwen2_5_VLForConditionalGeneration(reader),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def _qwen_tokenizer(words: list[str]) -> Any:
    """Bytes are tokens, and so are these words."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {word: number for number, word in enumerate(("<|endoftext|>", *sorted(ByteLevel.alphabet())))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens(words)
    return tokenizer
