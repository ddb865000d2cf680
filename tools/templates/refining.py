"""Templates that refine a video: the last part of UltraGen's steps, over another model's latent or a file."""

from __future__ import annotations

from tools.templates.layout import Layout
from tools.templates.parts import (
    LOG,
    NEGATIVE_ULTRAGEN,
    OWN_MODEL,
    PROMPT_REFINE,
    RESUME,
    ULTRAGEN,
    ULTRAGEN_LINKS,
    WAN_T2V,
    add_loaded_video,
    add_prompts,
    add_refining,
    add_sampling,
    add_video,
    load_clip,
    load_models,
    load_vae,
    note,
)


def two_pass_1080p(layout: Layout) -> str:
    layout.group("Models", 380)
    low_model = layout.add("UNETLoader", "Load Wan model", unet_name=WAN_T2V.name)
    high_model = layout.add("UltraGenLoadModel", checkpoint=ULTRAGEN.name)
    clip, vae = load_clip(layout), load_vae(layout)
    layout.group("Size")
    latent = layout.add("UltraGenEmptyLatent", preset="custom", width=960, height=544, frames=81, vae=vae)
    conds = add_prompts(layout, clip, NEGATIVE_ULTRAGEN)
    low = add_sampling(layout, low_model, conds, latent, title="Small, full attention")
    layout.group("Twice the size, UltraGen", 320)
    high = layout.add("LatentUpscaleBy", samples=low, upscale_method="bicubic", scale_by=2)
    add_video(layout, add_refining(layout, high_model, conds, high), vae, "ultragen_two_pass")
    return note(
        layout,
        "Two passes: 1080P from a smaller video (experimental)",
        "Plain Wan 2.1 1.3B makes 960x544 with full attention, which sees the whole frame. The latent is enlarged to"
        " 1920x1088, noise is added, and UltraGen samples the last 40% of its steps: it adds detail and keeps the"
        " layout of the first pass. Its quality with UltraGen's weights is unmeasured.",
        "**Without UltraGen's weights**, for any Wan model: connect *Load Wan model* to *UltraGen Apply*"
        " (attention_rule *ultragen*), that to *ScaleROPE* (scale_x and scale_y 0.8), and that to the second pass in"
        " place of *UltraGen Load Model*. On a small model this got 97% of what captions ask for right, one pass 76%,"
        f" and full attention 60% ([measurements]({OWN_MODEL})).",
        "**denoise** (*SplitSigmasDenoise*) sets how much UltraGen may change. Higher: more new detail. Lower: closer"
        " to the first pass, and softer.",
        "**Only the first pass?** Connect its latent to *UltraGen Save Video* for a quick look at the layout.",
        RESUME,
        LOG,
        ULTRAGEN_LINKS,
    )


def refine_1080p(layout: Layout) -> str:
    model, clip, vae = load_models(layout, ULTRAGEN)
    vae = layout.add("UltraGenVAETiling", vae=vae)
    loaded, frames, parts = add_loaded_video(layout)
    large = layout.add(
        "ImageScale", "Enlarge", image=frames, upscale_method="lanczos", width=1920, height=1088, crop="center"
    )
    latent = layout.add("VAEEncode", "Encode", pixels=large, vae=vae)
    conds = add_prompts(layout, clip, NEGATIVE_ULTRAGEN, PROMPT_REFINE)
    layout.group("New detail", 320)
    samples = add_refining(layout, model, conds, latent)
    saved = add_video(
        layout, samples, vae, "ultragen_refined", parts._replace(slot=2), "1080 lines", audio=parts._replace(slot=1),
        max_frames=loaded._replace(slot=2),
    )  # fmt: skip
    layout.group("What changed", 480)
    layout.add("UltraGenMetrics", "Enlarged alone", video=large)
    layout.add("UltraGenMetrics", "Refined", video=saved)
    return note(
        layout,
        "Refine a video: new detail at 1080P (experimental)",
        "Takes a video file, enlarges it to 1920x1088, encodes it exactly, adds noise, and samples the last 40% of"
        " UltraGen's steps: new detail in the same scene. Number of frames, frame rate and audio stay the same. Quality"
        " is unmeasured.",
        "**Your video**: choose it in *Load video* and describe it in *Prompt*: the model paints what it reads there.",
        "**denoise** (*SplitSigmasDenoise*) is the share of the steps that run again. Higher: more new detail, further"
        " from your video. Lower: closer to it, and softer.",
        "**Length.** Wan was trained on 81 frames; cut longer videos (*Trim Video*, in ComfyUI 0.30.0). Its VAE takes"
        " 4n + 1 frames, so the last frame is repeated up to three times, and *max_frames* takes these off again.",
        "**4K**: T3-Video's checkpoint in *UltraGen Load Model*, 3840x2176 in *Enlarge*, crop 2160 lines. **Another Wan"
        " model**: *Load Diffusion Model* and *UltraGen Apply*, attention_rule *ultragen*.",
        "**What changed**: HD-MSE of the enlarged and of the refined video. Higher: more detail, or more noise.",
        RESUME,
        LOG,
        ULTRAGEN_LINKS,
    )
