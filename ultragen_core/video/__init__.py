"""Frames to a video file, and latents to a file: PyAV, numpy and torch, no ComfyUI.

codecs   what can be written, and what can be known before the first frame
frames   decoded frames, waiting for the encoder, in 8 or 16 bits
encoder  one video file, frame by frame, in BT.709
latents  the latent kept beside a video
image    one picture of a file
reader   the frames of a file, one at a time
"""
