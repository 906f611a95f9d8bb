"""The `tiny` preset: a whole checkpoint folder of random weights from a fixed seed, for tests of everything but beauty."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import save_file

from models.checkpoint import WEIGHTS
from models.config import DiTConfig
from models.dit import DiT
from models.registry import tiny_folder

WIDTH, CONTEXT = 16, 15
VISION = {"image_size": 16, "layers": 1, "width": WIDTH, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1}
FLOW_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "final_sigmas_type": "zero",
}


def ensure_tiny() -> Path:
    """The folder of the `tiny` preset, written first if need be; safe when several processes ask at once."""
    folder = tiny_folder()
    if not (folder / "model_index.json").exists():
        partial = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
        write_tiny(partial)
        try:
            os.rename(partial, folder)
        except OSError:  # another process was first; its folder holds the same bits
            shutil.rmtree(partial)
    return folder


def write_tiny(folder: Path, seed: int = 0) -> None:
    """Write a random checkpoint of the embedded family into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = DiTConfig(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
            patch_size=2, caption_channels=WIDTH, interpolation_scale=1,
        )  # fmt: skip
        dit = DiT(config)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=4,
            num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
        )  # fmt: skip
        clip = CustomTextCLIP(WIDTH, CLIPVisionCfg(**VISION), CLIPTextCfg(**TEXT))
    write_part(folder / "transformer", config.to_diffusers(), dit.state_dict())
    vae.save_pretrained(folder / "vae")
    clip_config = {"model_cfg": {"embed_dim": WIDTH, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT}}
    write_clip(folder / "text_encoder", clip_config, clip.state_dict())
    write_index(folder, FLOW_SCHEDULER)


def write_part(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """A network in diffusers' layout: `config.json` and safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def write_clip(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """A CLIP in open_clip's local-dir layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")


def write_index(folder: Path, scheduler: dict) -> None:
    """The files that make a folder a `PixArtSigmaPipeline`; its text parts are ours alone, hence null for diffusers.

    Written last: a folder with a `model_index.json` is complete.
    """
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    index = {
        "_class_name": "PixArtSigmaPipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
