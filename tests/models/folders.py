"""Small checkpoint folders of every public family, with random weights from a fixed seed.

Images are 64 x 64. Each function writes a folder and returns diffusers' pipeline, the oracle.
Nothing is downloaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.models.text.folders import VOCABULARY, edit_json, write_clip_tokenizer, write_t5_tokenizer

SAMPLE_SIZE = 8  # latent pixels on a side
NUM_CLASSES = 1000  # the only number that diffusers' DiT pipeline supports
NOISE_BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
# Options of Transformer2DModel, in the published configs of PixArt and DiT, that later classes do not have.
OLD_OPTIONS = {
    "double_self_attention": False, "num_vector_embeds": None, "only_cross_attention": False,
    "use_linear_projection": False,
}  # fmt: skip


def write_pixart(folder: Path, kind: str = "sigma", seed: int = 0) -> DiffusionPipeline:
    """PixArt of a `kind`: "alpha", which reads the image's size, or "sigma"."""
    write_t5_tokenizer(folder / "tokenizer")
    with _seeded(seed):
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=8, num_layers=2,
            cross_attention_dim=48, sample_size=SAMPLE_SIZE, caption_channels=32, interpolation_scale=1,
            use_additional_conditions=kind == "alpha",
        )  # fmt: skip
        vae = make_vae(4, scaling_factor=0.13025)
        parts = {"text_encoder": _t5(32), "transformer": transformer, "vae": vae}
    scheduler = DPMSolverMultistepScheduler(**NOISE_BETAS)
    pipeline_class = PixArtAlphaPipeline if kind == "alpha" else PixArtSigmaPipeline
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    return _save(pipeline_class(tokenizer=tokenizer, scheduler=scheduler, **parts), folder)


def write_sd3(folder: Path, kind: str = "sd3", *, with_t5: bool = True, seed: int = 0) -> DiffusionPipeline:
    """Stable Diffusion of a `kind`: "sd3", "sd3.5-medium" (its first block is dual) or "sd3.5-large"."""
    tokenizers: dict[str, Any] = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
    for name, pad in tokenizers.items():
        tokenizers[name] = CLIPTokenizer.from_pretrained(write_clip_tokenizer(folder / name, pad))
    if with_t5:
        write_t5_tokenizer(folder / "tokenizer_3")
    with _seeded(seed):
        transformer = SD3Transformer2DModel(
            sample_size=SAMPLE_SIZE, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=32,
            pooled_projection_dim=40, out_channels=16, pos_embed_max_size=12,
            dual_attention_layers=(0,) if kind == "sd3.5-medium" else (),
            qk_norm=None if kind == "sd3" else "rms_norm",
        )  # fmt: skip
        parts = {
            "text_encoder": _clip(16, "quick_gelu"),
            "text_encoder_2": _clip(24, "gelu"),
            "text_encoder_3": _t5(64) if with_t5 else None,
            "transformer": transformer,
            "vae": make_vae(
                16,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        }
    tokenizers["tokenizer_3"] = T5TokenizerFast.from_pretrained(folder / "tokenizer_3") if with_t5 else None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = _save(StableDiffusion3Pipeline(scheduler=scheduler, **tokenizers, **parts), folder)
    # Published folders have two files, not the one that transformers 5 writes.
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name / "tokenizer.json").unlink()
    return pipeline


def write_dit(folder: Path, seed: int = 0) -> DiffusionPipeline:
    """The class-conditional DiT."""
    labels = {0: "tench, Tinca tinca", 207: "golden retriever"}
    with _seeded(seed):
        transformer = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
            sample_size=SAMPLE_SIZE, num_embeds_ada_norm=NUM_CLASSES,
        )  # fmt: skip
        parts = {"transformer": transformer, "vae": make_vae(4, scaling_factor=0.18215)}
    pipeline = _save(
        DiTPipeline(scheduler=DDIMScheduler(**NOISE_BETAS, clip_sample=False), id2label=labels, **parts),
        folder,
    )
    edit_json(folder / "model_index.json", id2label={str(number): label for number, label in labels.items()})
    return pipeline


def make_old(folder: Path) -> None:
    """Give the transformer of a PixArt or DiT folder the class that the published configs name."""
    edit_json(folder / "transformer" / "config.json", _class_name="Transformer2DModel", **OLD_OPTIONS)


def _save(pipeline: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()  # new modules are in training mode
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def make_vae(latent_channels: int, **options: Any) -> AutoencoderKL:
    """An autoencoder with random weights, eight pixels on a side of a latent one."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4,
        latent_channels=latent_channels, sample_size=8 * SAMPLE_SIZE, **options,
    )  # fmt: skip


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=8,
    )  # fmt: skip
    return T5EncoderModel(config)


def _clip(width: int, hidden_act: str) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, projection_dim=width, num_hidden_layers=3,
        num_attention_heads=2, hidden_act=hidden_act, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config)
