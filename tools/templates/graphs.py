"""Every template: its graph, settings and note. Each function adds the nodes and returns the note's text."""

from __future__ import annotations

from collections.abc import Callable

from tools.templates.comparing import compare_1080p
from tools.templates.layout import Layout, ModelFile
from tools.templates.parts import (
    CAUSVID,
    CLIP_H,
    IMAGE,
    LOG,
    NEGATIVE_ULTRAGEN,
    NEGATIVE_WAN,
    OWN_MODEL,
    PRESET_4K,
    PRESET_1080P,
    PROMPT_I2V,
    PROMPTS,
    RESUME,
    T3_LINKS,
    T3_WAN21,
    T3_WAN22,
    ULTRAGEN,
    ULTRAGEN_LINKS,
    VAE21,
    VAE22,
    WAN_I2V,
    add_prompts,
    add_sampling,
    add_video,
    load_clip,
    load_models,
    load_vae,
    note,
)
from tools.templates.refining import refine_1080p, two_pass_1080p


def t2v_1080p(layout: Layout) -> str:
    model, clip, vae = load_models(layout, ULTRAGEN)
    layout.group("Size")
    latent = layout.add("UltraGenEmptyLatent", preset=PRESET_1080P, vae=vae)
    conds = add_prompts(layout, clip, NEGATIVE_ULTRAGEN)
    add_video(layout, add_sampling(layout, model, conds, latent), vae, "ultragen")
    return note(
        layout,
        "UltraGen: native 1080P text to video",
        "Wan 2.1 1.3B with UltraGen's hierarchical attention makes 1920x1088, 81 frames, at 15 fps in one go: no"
        " upscaler. It is best at landscapes and scenery, weaker at people and fast motion.",
        "**Settings** are the published ones: 30 steps of euler, CFG 5, shift 5, seed 0 and an English negative prompt."
        " To try it quickly, set the size to *custom*, 960x576, 33 frames.",
        "**Memory.** 8 GB cards are enough (emulated on a larger one).",
        RESUME,
        LOG,
        ULTRAGEN_LINKS,
    )


def t3_4k_wan21(layout: Layout) -> str:
    _t3(layout, T3_WAN21, VAE21, "t3_4k_1.3b")
    return note(
        layout,
        "T3-Video: native 4K text to video, Wan 2.1 1.3B",
        "T3-Video's weights and attention make 3840x2176, 81 frames, at 30 fps in one go: no upscaler. The video is"
        " cropped to 3840x2160.",
        _T3_SETTINGS,
        "**Time and memory.** About 10 minutes for the 50 steps on an H200 (extrapolated from one evaluation, random"
        " weights of real size). 16 GB cards are enough (emulated on a larger one).",
        RESUME,
        LOG,
        T3_LINKS,
    )


def t3_4k_wan22(layout: Layout) -> str:
    _t3(layout, T3_WAN22, VAE22, "t3_4k_5b")
    return note(
        layout,
        "T3-Video: native 4K text to video, Wan 2.2 5B",
        "The larger of T3-Video's two models: 3840x2176, 81 frames, at 30 fps in one go. The video is cropped to"
        " 3840x2160. An evaluation takes about 4 s on an H200 (random weights of real size). A 16 GB card is enough"
        " (emulated on a larger one).",
        _T3_SETTINGS,
        "**This model needs Wan 2.2's VAE**, with 48 channels at a sixteenth of the size. Connect it to UltraGen Empty"
        " Latent too, which takes channels and ratio from it.",
        RESUME,
        LOG,
        T3_LINKS,
    )


_T3_SETTINGS = (
    "**Settings** are the published ones: 50 steps of euler, CFG 5, shift 5 and Wan's Chinese negative prompt. The"
    " weights were trained at this size alone; others are experimental. Keep the file's name: the attention rule is"
    " chosen by it (or set attention_rule to *t3*)."
)


def _t3(layout: Layout, model_file: ModelFile, vae_file: ModelFile, name: str) -> None:
    model, clip, vae = load_models(layout, model_file, vae_file)
    layout.group("Size")
    latent = layout.add("UltraGenEmptyLatent", preset=PRESET_4K, width=3840, height=2176, vae=vae)
    conds = add_prompts(layout, clip, NEGATIVE_WAN)
    add_video(layout, add_sampling(layout, model, conds, latent, steps=50), vae, name, fps=30, crop="2160 lines")


def few_steps_1080p(layout: Layout) -> str:
    model, clip, vae = load_models(layout, ULTRAGEN)
    model = layout.add(
        "LoraLoaderModelOnly", "Load distillation LoRA", model=model, lora_name=CAUSVID.name, strength_model=0.5
    )
    layout.group("Size")
    latent = layout.add("UltraGenEmptyLatent", preset=PRESET_1080P, vae=vae)
    conds = add_prompts(layout, clip, NEGATIVE_ULTRAGEN)
    add_video(layout, add_sampling(layout, model, conds, latent, steps=8, cfg=1), vae, "ultragen_few_steps")
    return note(
        layout,
        "UltraGen in few steps: 1080P text to video (experimental)",
        "UltraGen's weights with a step-distillation LoRA: 8 steps without CFG, so 8 evaluations of the model instead"
        " of 60. The LoRA (CausVid) was made for plain Wan 2.1 1.3B at lower resolution. **Nobody has measured what it"
        " does to UltraGen's pictures**: compare with ultragen_t2v_1080p before you trust it.",
        "**To try**: 4 to 8 steps; a LoRA strength between 0.3 and 1; shift 3 to 8. At CFG 1 the negative prompt has no"
        " effect.",
        "**Other LoRAs** for Wan 2.1 1.3B go into the same node.",
        LOG,
        ULTRAGEN_LINKS,
    )


def multigpu_1080p(layout: Layout) -> str:
    model, clip, vae = load_models(layout, ULTRAGEN)
    layout.group("GPUs and size", 320)
    model = layout.add("UltraGenMultiGPU", model=model)
    latent = layout.add("UltraGenEmptyLatent", preset=PRESET_1080P, vae=vae)
    conds = add_prompts(layout, clip, NEGATIVE_ULTRAGEN)
    add_video(layout, add_sampling(layout, model, conds, latent), vae, "ultragen_multigpu", gpus=0)
    return note(
        layout,
        "UltraGen on several GPUs: one 1080P video",
        "All GPUs of this computer sample one video, and decode it together. The result is that of one GPU, except for"
        " rounding. Needs ComfyUI 0.30.0 or newer; on an older one, or with one GPU, it runs as ultragen_t2v_1080p.",
        "**gpus** is 0 in both nodes: all. *UltraGen MultiGPU* samples, *UltraGen Save Video* decodes.",
        "**What it gains**, measured with CFG 5: a step of 6.8 s takes 3.5 s on two H200 and 1.9 s on four (NVLink,"
        " random weights of real size). GPUs without NVLink are unmeasured; set split to *prompts* there. Small videos"
        " gain nothing.",
        "**Memory.** Each GPU holds the whole model.",
        RESUME,
        LOG,
        ULTRAGEN_LINKS,
    )


def i2v_1080p(layout: Layout) -> str:
    layout.group("Models", 380)
    model = layout.add("UNETLoader", "Load Wan model", unet_name=WAN_I2V.name)
    model = layout.add("UltraGenApply", model=model, attention_rule="ultragen")
    clip = load_clip(layout)
    vision = layout.add("CLIPVisionLoader", "Load CLIP vision", clip_name=CLIP_H.name)
    vae = layout.add("UltraGenVAETiling", vae=load_vae(layout))
    conds = add_prompts(layout, clip, NEGATIVE_WAN, PROMPT_I2V)
    layout.group("First frame and size", 380)
    image = layout.add("LoadImage", "Load first frame", image=IMAGE)
    seen = layout.add("CLIPVisionEncode", clip_vision=vision, image=image, crop="none")
    made = layout.add(
        "WanImageToVideo", width=1920, height=1088, length=81, vae=vae, start_image=image, clip_vision_output=seen,
        **conds,
    )  # fmt: skip
    conds = {"positive": made, "negative": made._replace(slot=1)}
    add_video(layout, add_sampling(layout, model, conds, made._replace(slot=2), steps=40), vae, "ultragen_i2v", fps=16)
    return note(
        layout,
        "Any Wan model: 1080P image to video (experimental)",
        "UltraGen's attention on a Wan model that was not trained for it, here Wan 2.1 I2V 14B. **Its quality was"
        " measured on a small model only**: there the distance to real videos (HD-FVD, lower is better) was 0.0012,"
        f" against 0.0661 with full attention. [More numbers, and what to do with your own Wan model]({OWN_MODEL}).",
        "**Another Wan model** goes into *Load Wan model*, from any loader, GGUF too. Text to video works the same:"
        " *UltraGen Apply* after the loader, attention_rule *ultragen*.",
        "**To try**: *ScaleROPE* with scale_x and scale_y 0.8 after *UltraGen Apply*, which brought HD-FVD to 0.0007"
        " there. Full attention in the first fifth of the run (start_percent 0.2) made it worse: the first frame"
        " already gives the layout. Text to video has no first frame: use ultragen_two_pass_1080p.",
        "**Settings** are Wan's own: 40 steps, shift 5, CFG 5, 16 fps. The image is cropped to the video's"
        " shape. *UltraGen Exact VAE Tiling* encodes it in bounded memory too.",
        "**Memory** of 14B has not been measured. The picture on *UltraGen Apply* says what its activations need, and"
        " whether your GPU has it. Weights that do not fit beside them wait in RAM: a smaller file (fp8, GGUF) needs"
        " less of it.",
        RESUME,
        LOG,
        ULTRAGEN_LINKS,
    )


def batch_1080p(layout: Layout) -> str:
    model, clip, vae = load_models(layout, ULTRAGEN)
    layout.group("Size")
    latent = layout.add("UltraGenEmptyLatent", preset=PRESET_1080P, vae=vae)
    layout.group("List", 440)
    prompts = layout.add("UltraGenPrompts", text=PROMPTS, index=0, negative=NEGATIVE_ULTRAGEN)
    prompts.node["widgets_values"][4] = "increment"  # index's "control after generate"
    conds = add_prompts(layout, clip, prompts._replace(slot=1), prompts)
    samples = add_sampling(layout, model, conds, latent, seed=prompts._replace(slot=2))
    add_video(layout, samples, vae, "ultragen_batch", details=prompts._replace(slot=4))
    return note(
        layout,
        "UltraGen: one video for each prompt of a list",
        "**Press *queue all prompts*** on *UltraGen Prompts*, or set the number next to Run to the length of the list"
        " (here 3) and run. Each entry of the queue makes the video of one prompt and saves it before the next begins."
        " *index* counts them, from 0.",
        "**Your list** is text, one prompt a line, or a .txt, .csv or .json file in ComfyUI's input folder:"
        " press R and choose it in *file*. A table with the columns *prompt*, *negative*, *seed* sets them for each"
        " video; empty cells take the node's values.",
        "**Interrupted?** Saved videos stay. Set *index* to the interrupted prompt and run the rest again.",
        "**Settings** are the published ones, as in ultragen_t2v_1080p.",
        LOG,
        ULTRAGEN_LINKS,
    )


def decode_only(layout: Layout) -> str:
    layout.group("Latent and VAE", 440)
    samples = layout.add("UltraGenLoadLatent")
    samples.node["widgets_values"].clear()  # without a value it takes the newest latent
    vae = load_vae(layout)
    add_video(layout, samples, vae, "ultragen_rescued", keep_latent="off")
    return note(
        layout,
        "Rescue: a video from a latent that was kept",
        "The decode was killed, the disk was full, or you want the same video in another codec? *UltraGen Save Video*"
        " kept the latent in output/latents before the decode began. This graph needs no model and no sampling.",
        "**Which latent?** The newest is chosen when this opens. Press R to see newer ones.",
        "**Which VAE?** The one that the video was sampled with: *wan_2.1_vae* for 16 channels, *wan2.2_vae* for 48"
        " (the 5B model). The frame rate is your choice again: UltraGen 15, T3-Video 30, Wan 16.",
        "**Still out of memory?** Give *tile* a smaller number, such as 256: the result is the same.",
    )


TEMPLATES: dict[str, Callable[[Layout], str]] = {
    "ultragen_t2v_1080p": t2v_1080p,
    "ultragen_t3_4k_wan21_1_3b": t3_4k_wan21,
    "ultragen_t3_4k_wan22_5b": t3_4k_wan22,
    "ultragen_few_steps_1080p": few_steps_1080p,
    "ultragen_i2v_1080p": i2v_1080p,
    "ultragen_two_pass_1080p": two_pass_1080p,
    "ultragen_refine_1080p": refine_1080p,
    "ultragen_multigpu_1080p": multigpu_1080p,
    "ultragen_compare_1080p": compare_1080p,
    "ultragen_batch_1080p": batch_1080p,
    "ultragen_decode_only": decode_only,
}
