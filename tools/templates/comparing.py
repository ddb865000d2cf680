"""The template that compares four ways to 1080P: one prompt, one seed, one size."""

from __future__ import annotations

from tools.templates.layout import Layout, Out
from tools.templates.parts import (
    LOG,
    NEGATIVE_ULTRAGEN,
    PRESET_1080P,
    RESUME,
    SEEDVR2,
    SEEDVR2_VAE,
    ULTRAGEN,
    ULTRAGEN_LINKS,
    WAN_T2V,
    add_prompts,
    load_clip,
    load_vae,
    note,
)

FPS = 15
SECONDS = 2  # of the videos that are shown side by side: what they need of RAM


def compare_1080p(layout: Layout) -> str:
    layout.group("Models", 380)
    wan = layout.add("UNETLoader", "Load Wan model", unet_name=WAN_T2V.name)
    ultragen = layout.add("UltraGenLoadModel", checkpoint=ULTRAGEN.name)
    clip, vae = load_clip(layout), load_vae(layout)
    seedvr2 = layout.add("UNETLoader", "Load SeedVR2", unet_name=SEEDVR2.name)
    seedvr2_vae = layout.add("VAELoader", "Load SeedVR2's VAE", vae_name=SEEDVR2_VAE.name)
    conds = add_prompts(layout, clip, NEGATIVE_ULTRAGEN)
    layout.group("Size and seed")
    large = layout.add("UltraGenEmptyLatent", "Size", preset=PRESET_1080P, vae=vae)
    seed = layout.add("PrimitiveInt", "Seed", value=0)
    run = _Sampling(layout, layout.add("RandomNoise", "Noise", noise_seed=seed))
    wan_run, ultragen_run = run.settings(wan, conds, "Wan"), run.settings(ultragen, conds, "UltraGen")

    layout.group("a  Full attention", 480)
    dense = _save(layout, run.sample(large, *wan_run), vae, "a_full_attention")

    layout.group("Small video, for b and c", 320)
    half = layout.add("LatentUpscaleBy", "Half the size", samples=large, upscale_method="nearest-exact", scale_by=0.5)
    small = run.sample(half, *wan_run)
    layout.group("Enlarged, for b")
    pieces = _enlarge(layout, layout.add("UltraGenVAEDecode", samples=small, vae=vae), seedvr2_vae)

    layout.row()
    layout.group("b  Small video, then SeedVR2", 480)
    enlarged = _save(layout, _restore(layout, seedvr2, pieces, seed), seedvr2_vae, "b_seedvr2")

    layout.group("c  Small video, then UltraGen: two passes", 480)
    twice = layout.add("LatentUpscaleBy", "Twice the size", samples=small, upscale_method="bicubic", scale_by=2)
    guider, sigmas = ultragen_run
    last = layout.add("SplitSigmasDenoise", sigmas=sigmas, denoise=0.4)._replace(slot=1)
    two_pass = _save(layout, run.sample(twice, guider, last), vae, "c_two_passes")

    layout.group("d  UltraGen", 480)
    direct = _save(layout, run.sample(large, *ultragen_run), vae, "d_ultragen")

    _compare(layout, [dense, enlarged, two_pass, direct])
    return _note(layout)


class _Sampling:
    """What all runs share: noise and sampler."""

    def __init__(self, layout: Layout, noise: Out):
        layout.group("Sampling", 320)
        self._layout, self._noise = layout, noise
        euler = layout.add("KSamplerSelect", sampler_name="euler")
        self._sampler = layout.add("UltraGenResume", sampler=euler)

    def settings(self, model: Out, conds: dict[str, Out], name: str) -> tuple[Out, Out]:
        """Return guider and sigmas."""
        sampling = self._layout.add("UltraGenModelSampling", f"Steps, {name}", model=model, shift=5, steps=30)
        guider = self._layout.add("CFGGuider", f"CFG, {name}", model=sampling, cfg=5, **conds)
        return guider, sampling._replace(slot=1)

    def sample(self, latent: Out, guider: Out, sigmas: Out) -> Out:
        return self._layout.add(
            "SamplerCustomAdvanced", "Sample", noise=self._noise, guider=guider, sampler=self._sampler, sigmas=sigmas,
            latent_image=latent,
        )  # fmt: skip


def _enlarge(layout: Layout, frames: Out, vae: Out) -> Out:
    """Add the first half of ComfyUI's own template for SeedVR2, with its settings.

    Returns the latents of as many pieces of the video as the GPU's memory asks for.
    """
    large = layout.add("ImageScaleBy", "Twice the size", image=frames, upscale_method="lanczos", scale_by=2)
    padded = layout.add("SeedVR2Preprocess", resized_images=large)
    latent = layout.add(
        "VAEEncodeTiled", pixels=padded, vae=vae, tile_size=512, overlap=128, temporal_size=64, temporal_overlap=8
    )
    return layout.add("SeedVR2TemporalChunk", latent=latent, temporal_overlap=2)


def _restore(layout: Layout, model: Out, pieces: Out, seed: Out) -> Out:
    """Add the second half: one step for each piece."""
    conds = layout.add("SeedVR2Conditioning", model=model, vae_conditioning=pieces)
    sampled = layout.add(
        "KSampler", "SeedVR2, 1 step", model=model, seed=seed, steps=1, cfg=1, sampler_name="euler",
        scheduler="simple", positive=conds, negative=conds._replace(slot=1), latent_image=pieces,
    )  # fmt: skip
    return layout.add("SeedVR2TemporalMerge", latents=sampled, temporal_overlap=pieces._replace(slot=1))


def _save(layout: Layout, samples: Out, vae: Out, name: str) -> Out:
    title, prefix = f"Save {name[0]}", f"video/compare/{name}"
    return layout.add("UltraGenSaveVideo", title, samples=samples, vae=vae, fps=FPS, filename_prefix=prefix)


def _compare(layout: Layout, videos: list[Out]) -> None:
    """Add the table, and the videos side by side: a and b above c and d."""
    layout.group("Table", 480)
    listed = layout.add("CreateList", "a, b, c, d", inputs=videos)
    layout.add("UltraGenMetrics", "Table: 1 is a, 2 is b, 3 is c, 4 is d", video=listed)
    layout.group("Frames")
    begun = layout.add("Video Slice", "The first seconds", video=listed, duration=SECONDS)
    frames = layout.add("GetVideoComponents", "Frames", video=begun)
    layout.group("Side by side", 480)
    size = layout.add("GetImageSize", "Size of the whole", image=frames)
    half = layout.add("ImageScaleBy", "Half the size", image=frames, upscale_method="area", scale_by=0.5)
    whole = layout.add(
        "ImageMergeTileList", "a and b above c and d", image_list=half, final_width=size,
        final_height=size._replace(slot=1), overlap=0,
    )  # fmt: skip
    video = layout.add("CreateVideo", images=whole, fps=FPS)
    layout.add("SaveVideo", video=video, filename_prefix="video/compare/side_by_side")


def _note(layout: Layout) -> str:
    return note(
        layout,
        "Compare four ways to 1080P: full attention, SeedVR2, two passes, UltraGen",
        "One prompt, one seed, one size. **a**: Wan with full attention at the full size. **b**: Wan at half the size,"
        " enlarged by SeedVR2 with ComfyUI's own nodes. **c**: the same small video, refined by UltraGen in a second"
        " pass. **d**: UltraGen. **Needs ComfyUI 0.30.0** or newer, for SeedVR2.",
        "**Prompt, size and seed** are set once, in groups 2 and 3. All four videos have the size and length of *Size*"
        " and the same encoder settings.",
        "**Time.** 30 steps each. On an H200 a step takes 32 s in **a** and 7.1 s in **d** (random weights); **b**"
        " and **c** are unmeasured. To try it quickly, set *Size* to *custom*, 960x576, 33 frames.",
        "**Memory.** The four videos are files, and the table reads them frame by frame. At 1080P frames need up to 7"
        " GB of RAM, while SeedVR2 runs (computed); with the models, 32 GB of RAM should do. *Split SeedVR2 Latent*"
        " gives SeedVR2 as many frames at a time as your GPU can take.",
        f"**Side by side** shows a and b above c and d, at half their size, for the first {SECONDS} seconds. That needs"
        " 5 GB of RAM. For all 81 frames set *duration* to 0 in *The first seconds*: 14 GB. The whole videos are in"
        " output/video/compare.",
        "**Table.** HD-MSE of each video. Higher: more detail, or more noise. Switch on further metrics there; each"
        " names the file that it needs. For *clip_score* copy the prompt.",
        "**b** has the files and settings of ComfyUI's template for SeedVR2. Two things differ: where the video is"
        " split, pieces overlap by 2 latent frames; and *Post-Process SeedVR2 Output* is left out, because it removes"
        " padding, of which *Size* needs none.",
        LOG,
        RESUME,
        ULTRAGEN_LINKS,
    )
