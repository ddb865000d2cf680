"""The metrics of UltraGen's appendix D, frame by frame: torch and numpy, no ComfyUI; networks are handed in.

detail   HD-MSE and HD-LPIPS: what a frame loses when it is made smaller
lpips    the distance of HD-LPIPS
patches  HD-FVD: patches of a video at full resolution, and the distance between two sets of them
i3d      the network that HD-FVD looks through
clip     CLIP score and temporal consistency, from CLIP's embeddings
scores   frames to numbers, for one video and for many
report   those numbers as text and as a picture
"""
