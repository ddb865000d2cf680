"""Every variant of Wan that ComfyUI knows, at toy size with random weights, through ComfyUI's own detection."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import SimpleNamespace

import comfy.ldm.wan.model as wan
import comfy.ldm.wan.model_animate as animate
import comfy.ops
import comfy.sd
import torch

from helpers.support import seeded

LAYERS = 5  # Animate has an adapter for every fifth
T, H, W = 3, 16, 24  # of the latent


def frames(*channels_and_frames: int, seed: int = 3) -> torch.Tensor:
    channels, t = channels_and_frames
    return seeded(1, channels, t, H, W, seed=seed)


@dataclass(frozen=True)
class WanVariant:
    """A variant of Wan, and how to sample with it.

    build: ComfyUI's class. make: its arguments besides the sizes. conditions: the sampler's conditions besides the
    prompt. dense_because: the log's reason if the rule cannot run. config: the model's config in the file's metadata.
    """

    build: type
    make: dict = field(default_factory=dict)
    conditions: Callable[[], dict] = dict
    dense_because: str = ""
    latent_channels: int = 16
    config: dict | None = None


def clip_vision():
    return SimpleNamespace(penultimate_hidden_states=seeded(1, 257, 1280, seed=4))


def start_image() -> dict:
    return {"concat_latent_image": frames(16, T), "concat_mask": torch.zeros(1, 1, T, H, W)}


I2V_21 = {"model_type": "i2v", "in_dim": 36}
FRAME = H * W // 4  # tokens


def joined(tokens: int) -> str:
    return f"all blocks stay dense, because {tokens} extra tokens joined the video's {T * FRAME}"


KINDS = {
    "Wan2.1 T2V": WanVariant(wan.WanModel),
    "Wan2.1 I2V": WanVariant(wan.WanModel, I2V_21, lambda: {**start_image(), "clip_vision_output": clip_vision()}),
    "Wan2.1 FLF2V": WanVariant(
        wan.WanModel,
        {**I2V_21, "flf_pos_embed_token_number": 514},
        lambda: {
            **start_image(),
            "clip_vision_output": SimpleNamespace(penultimate_hidden_states=seeded(1, 514, 1280, seed=4)),
        },
    ),
    "Wan2.1 VACE": WanVariant(
        wan.VaceWanModel,
        {"model_type": "vace", "vace_layers": LAYERS, "vace_in_dim": 96},
        lambda: {"vace_frames": [frames(32, T)], "vace_mask": [frames(64, T)], "vace_strength": [0.7]},
    ),
    "Wan2.1 Fun Control": WanVariant(
        wan.WanModel, {"model_type": "i2v", "in_dim": 48}, lambda: {"concat_latent_image": frames(32, T)}
    ),
    "Wan2.1 Fun Control with a reference": WanVariant(
        wan.WanModel,
        {"model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16},
        lambda: {"concat_latent_image": frames(32, T), "reference_latents": [frames(16, 1)]},
        dense_because=joined(FRAME),
    ),
    "Wan2.1 Fun Inpaint": WanVariant(wan.WanModel, I2V_21, start_image),
    "Wan2.1 Fun Camera": WanVariant(
        wan.CameraWanModel,
        {"model_type": "camera", "in_dim": 32},
        lambda: {"concat_latent_image": frames(16, T), "camera_conditions": seeded(1, 24, T, 8 * H, 8 * W, seed=5)},
    ),
    "Wan2.1 Phantom": WanVariant(wan.WanModel, {}, lambda: {"time_dim_concat": frames(16, 2)}),
    "Wan2.2 T2V A14B": WanVariant(wan.WanModel),
    "Wan2.2 I2V A14B": WanVariant(wan.WanModel, {"in_dim": 36}, start_image),
    "Wan2.2 TI2V 5B": WanVariant(wan.WanModel, {"in_dim": 48, "out_dim": 48}, latent_channels=48),
    "Wan2.2 Fun Camera": WanVariant(
        wan.CameraWanModel,
        {"model_type": "camera_2.2", "in_dim": 36},
        lambda: {**start_image(), "camera_conditions": seeded(1, 24, T, 8 * H, 8 * W, seed=5)},
    ),
    "Wan2.2 Animate": WanVariant(
        animate.AnimateWanModel,
        {"model_type": "animate", "in_dim": 36},
        lambda: {
            **start_image(),
            "clip_vision_output": clip_vision(),
            "pose_video_latent": frames(16, T - 1),
            "face_video_pixels": seeded(1, 3, 1, 512, 512, seed=6),
        },
    ),
    "Wan2.2 S2V": WanVariant(
        wan.WanModel_S2V,
        {"model_type": "s2v"},
        lambda: {"audio_embed": seeded(1, 25, 1024, 4 * T, seed=7), "control_video": frames(16, T)},
    ),
    "Wan2.2 S2V with a reference": WanVariant(
        wan.WanModel_S2V,
        {"model_type": "s2v"},
        lambda: {"audio_embed": seeded(1, 25, 1024, 4 * T, seed=7), "reference_latents": [frames(16, 1)]},
        dense_because=joined(FRAME),
    ),
    "HuMo": WanVariant(
        wan.HumoWanModel, {"model_type": "humo"}, lambda: {"audio_embed": seeded(1, T, 8, 5, 1280, seed=7)}
    ),
    "HuMo with a reference": WanVariant(
        wan.HumoWanModel,
        {"model_type": "humo"},
        lambda: {"audio_embed": seeded(1, T, 8, 5, 1280, seed=7), "reference_latents": [frames(16, 1)]},
        dense_because=joined(FRAME),
    ),
}
if hasattr(wan, "SCAILWanModel"):  # 0.3.75 has none of these
    import comfy.ldm.wan.ar_model as causal
    import comfy.ldm.wan.model_wandancer as wandancer

    KINDS |= {
        "Wan2.1 with context latents": WanVariant(
            wan.WanModel, {}, lambda: {"context_latents": [frames(16, 1)]}, dense_because=joined(FRAME)
        ),
        "SCAIL": WanVariant(
            wan.SCAILWanModel,
            {"model_type": "scail", "in_dim": 20},
            lambda: {"clip_vision_output": clip_vision(), "pose_video_latent": seeded(1, 16, T, 8, 12, seed=8)},
            dense_because=joined(T * FRAME // 4),
        ),
        "SCAIL-2": WanVariant(
            wan.SCAIL2WanModel, {"model_type": "scail2", "in_dim": 20}, lambda: {"clip_vision_output": clip_vision()}
        ),
        "SCAIL-2 with a pose": WanVariant(
            wan.SCAIL2WanModel,
            {"model_type": "scail2", "in_dim": 20},
            lambda: {"clip_vision_output": clip_vision(), "pose_video_latent": seeded(1, 16, T, 8, 12, seed=8)},
            dense_because=joined(T * FRAME // 4),
        ),
        "WanDancer": WanVariant(
            wandancer.WanDancerModel,
            {"model_type": "wandancer", "in_dim": 36},
            lambda: {
                **start_image(),
                "clip_vision_output": clip_vision(),
                "audio_embed": seeded(1, 12, 35, seed=9),
                "fps": 7.5,  # other positions in time than those of 30
            },
        ),
        "Causal Wan (autoregressive)": WanVariant(
            causal.CausalWanModel,
            config={"transformer": {"causal_ar": True}},
            dense_because="its attention is CausalWanSelfAttention",
        ),
    }
if find_spec("comfy.ldm.wan.model_animate2"):  # from 0.31 on
    import comfy.ldm.wan.model_animate2 as animate2

    KINDS["Wan-Animate 2"] = WanVariant(
        animate2.WanAnimate2Model,
        {"in_dim": 36},
        lambda: {
            **start_image(),
            "clip_vision_output": clip_vision(),
            "clip_vision_output_pose": clip_vision(),
            "pose_video_latent": frames(16, T - 1),
            "cross_attn_pose": seeded(1, 8, 4096, seed=10),
        },
        dense_because="its attention is WanAnimate2SelfAttention",
        config={"transformer": {"model_type": "animate2"}},
    )


def load(kind: WanVariant, width: int = 128):
    """A ModelPatcher in float32, known by its keys as a file would be."""
    arguments = {"dim": width, "ffn_dim": 2 * width, "num_heads": width // 128, "num_layers": LAYERS, **kind.make}
    model = kind.build(**arguments, operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32)
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        norm = tensor.ndim == 1 and key.endswith("weight")
        state[key] = 1 + 0.1 * noise if norm else noise * (0.1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
    metadata = {"config": json.dumps(kind.config)} if kind.config else None
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32}, metadata=metadata)
