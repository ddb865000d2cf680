"""Parts that templates share: model files, prompts, and groups of nodes."""

from __future__ import annotations

from tools.templates.layout import Layout, ModelFile, Out

_HUB = "https://huggingface.co/"
_WAN21 = _HUB + "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/"
_WAN22 = _HUB + "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/"
_T3 = _HUB + "APRIL-AIGC/T3-Video/resolve/main/"
ULTRAGEN = ModelFile(_HUB + "JTUplayer/Ultragen/resolve/main/ultragen_1080p.ckpt", "diffusion_models")
T3_WAN21 = ModelFile(_T3 + "T3-Video-Wan2.1-T2V-1.3B.safetensors", "diffusion_models")
T3_WAN22 = ModelFile(_T3 + "T3-Video-Wan2.2-T2V-5B.safetensors", "diffusion_models")
WAN_T2V = ModelFile(_WAN21 + "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors", "diffusion_models")
WAN_I2V = ModelFile(_WAN21 + "diffusion_models/wan2.1_i2v_720p_14B_fp16.safetensors", "diffusion_models")
UMT5 = ModelFile(_WAN21 + "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders")
CLIP_H = ModelFile(_WAN21 + "clip_vision/clip_vision_h.safetensors", "clip_vision")
VAE21 = ModelFile(_WAN21 + "vae/wan_2.1_vae.safetensors", "vae")
VAE22 = ModelFile(_WAN22 + "vae/wan2.2_vae.safetensors", "vae")
CAUSVID = ModelFile(
    _HUB + "Kijai/WanVideo_comfy/resolve/main/Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors", "loras"
)
_SEEDVR2 = _HUB + "Comfy-Org/SeedVR2/resolve/main/"
SEEDVR2 = ModelFile(_SEEDVR2 + "diffusion_models/seedvr2_3b_int8_convrot.safetensors", "diffusion_models")
SEEDVR2_VAE = ModelFile(_SEEDVR2 + "vae/seedvr2_ema_vae_fp16.safetensors", "vae")
FILES = [ULTRAGEN, T3_WAN21, T3_WAN22, WAN_T2V, WAN_I2V, UMT5, CLIP_H, VAE21, VAE22, CAUSVID, SEEDVR2, SEEDVR2_VAE]

IMAGE, VIDEO = "example.png", "example.mp4"  # in the input folder
PRESET_1080P, PRESET_4K = "1080P x 81 (1920x1088)", "4K x 81 (3840x2176)"
PROMPT = (
    "Wide aerial shot drifting slowly over a mountain lake at sunrise. Snow-covered peaks catch the first golden light,"
    " mist lies on the still water, and dark pine forest runs down to the shore. High clouds glow pink above the ridge,"
    " and every detail of rock, bark and ripple is crisp."
)
PROMPT_I2V = "The camera moves slowly into the scene, light and shadow drift over it, every detail stays crisp."
PROMPT_REFINE = "A mountain lake at dusk under a clear sky, the low sun on the left, every ripple is crisp."
PROMPTS = """# One prompt a line. A line that starts with # and a blank is a comment.
Wide aerial shot drifting slowly over a mountain lake at sunrise, snow-covered peaks, mist on the still water
Waves roll in on black volcanic sand at dusk, foam glows in the last light, the camera stays low and still
Slow drone flight above an autumn forest in the fog, golden larches, a river winds through the valley"""
NEGATIVE_ULTRAGEN = (
    "Aerial view, overexposed, low quality, deformation, bad composition, bad hands, bad teeth, bad eyes, bad limbs,"
    " distortion, blurring, text, subtitles"
)
NEGATIVE_WAN = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
# Paragraphs of notes.
RESUME = (
    "**Interrupted?** Run the same workflow again: UltraGen Resume continues after the last step that it kept. The"
    " latent is saved before it is decoded: UltraGen Load Latent loads it."
)
LOG = "**What ran** is in ComfyUI's log, one line per run: rule, blocks and windows."
ULTRAGEN_LINKS = (
    "[UltraGen's paper](https://arxiv.org/abs/2510.18775) - [published code](https://github.com/sjtuplayer/UltraGen)"
)
OWN_MODEL = "https://github.com/ultragen-comfyui/ultragen/blob/main/docs/ablation.md#what-to-do-with-your-own-wan-model"
T3_LINKS = (
    "[T3-Video's paper](https://arxiv.org/abs/2512.13492) - [published code](https://github.com/zhangzjn/T3-Video)"
)


def load_models(layout: Layout, model_file: ModelFile, vae_file: ModelFile = VAE21) -> tuple[Out, Out, Out]:
    layout.group("Models", 380)
    model = layout.add("UltraGenLoadModel", checkpoint=model_file.name)
    return model, load_clip(layout), load_vae(layout, vae_file)


def load_clip(layout: Layout) -> Out:
    return layout.add("CLIPLoader", "Load text encoder", clip_name=UMT5.name, type="wan")


def load_vae(layout: Layout, file: ModelFile = VAE21) -> Out:
    return layout.add("VAELoader", "Load VAE", vae_name=file.name)


def add_prompts(layout: Layout, clip: Out, negative: str | Out, prompt: str | Out = PROMPT) -> dict[str, Out]:
    layout.group("Prompts", 440)
    return {
        "positive": layout.add("CLIPTextEncode", "Prompt", clip=clip, text=prompt),
        "negative": layout.add("CLIPTextEncode", "Negative prompt", clip=clip, text=negative),
    }


def add_sampling(
    layout: Layout,
    model: Out,
    conds: dict[str, Out],
    latent: Out,
    steps: int = 30,
    cfg: int = 5,
    title: str = "Sampling",
    seed: int | Out = 0,
) -> Out:
    layout.group(title, 320)
    sampling = layout.add("UltraGenModelSampling", model=model, shift=5, steps=steps)
    return _sampler(layout, sampling, sampling._replace(slot=1), conds, latent, cfg, seed)


def add_refining(layout: Layout, model: Out, conds: dict[str, Out], latent: Out) -> Out:
    """Add the last part of a sampling run, which refines the latent of a finished video."""
    sampling = layout.add("UltraGenModelSampling", model=model, shift=5, steps=30)
    split = layout.add("SplitSigmasDenoise", sigmas=sampling._replace(slot=1), denoise=0.4)
    return _sampler(layout, sampling, split._replace(slot=1), conds, latent)


def _sampler(
    layout: Layout, model: Out, sigmas: Out, conds: dict[str, Out], latent: Out, cfg: int = 5, seed: int | Out = 0
) -> Out:
    guider = layout.add("CFGGuider", "CFG", model=model, cfg=cfg, **conds)
    noise = layout.add("RandomNoise", "Seed", noise_seed=seed)
    sampler = layout.add("UltraGenResume", sampler=layout.add("KSamplerSelect", sampler_name="euler"))
    return layout.add(
        "SamplerCustomAdvanced", "Sample", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
        latent_image=latent,
    )  # fmt: skip


def add_loaded_video(layout: Layout) -> tuple[Out, Out, Out]:
    """Add a loaded video. Returns its size (number of frames at slot 2), its frames, and its parts (1: audio, 2: fps).

    The last frame is repeated three times: the VAE drops what does not make 4n + 1 frames.
    """
    layout.group("Your video", 320)
    parts = layout.add("GetVideoComponents", "Its parts", video=layout.add("LoadVideo", "Load video", file=VIDEO))
    size = layout.add("GetImageSize", "Number of frames", image=parts)
    last = layout.add("ImageFromBatch", "Last frame", image=parts, batch_index=4095, length=1)
    last = layout.add("RepeatImageBatch", "Three times", image=last, amount=3)
    return size, layout.add("ImageBatch", "Video and last frames", image1=parts, image2=last), parts


def add_video(
    layout: Layout, samples: Out, vae: Out, name: str, fps: int | Out = 15, crop: str = "keep", **others: str | Out
) -> Out:
    layout.group("Video", 480)
    return layout.add(
        "UltraGenSaveVideo", samples=samples, vae=vae, fps=fps, crop=crop, filename_prefix=f"video/{name}", **others
    )


def note(layout: Layout, title: str, *paragraphs: str) -> str:
    """Return a note: title, first paragraph, the files that the graph needs, the other paragraphs.

    Names are in italics: ComfyUI's newer renderer writes code in blue on blue, which nobody can read on a note.
    """
    links = [f"- [{file.name}]({file.url}) in models/{file.directory}" for file in dict.fromkeys(layout.used)]
    files = ["**Files** (the nodes show a download button when one is missing)", "\n".join(links)] if links else []
    return "\n\n".join([f"# {title}", paragraphs[0], *files, *paragraphs[1:]]) + "\n"
