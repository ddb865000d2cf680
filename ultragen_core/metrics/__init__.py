"""The metrics of UltraGen's paper (appendix D), computed frame by frame. No ComfyUI.

detail     HD-MSE and HD-LPIPS: the detail a frame loses when it is downscaled
lpips      the network of HD-LPIPS
patches    HD-FVD: features of full-resolution patches, and the Frechet distance
i3d        the network of HD-FVD
clip       CLIP score and temporal consistency, from CLIP embeddings
backbones  loads the networks from their published files
scores     computes all metrics of one video or many
report     formats scores as JSON, text and picture
"""
