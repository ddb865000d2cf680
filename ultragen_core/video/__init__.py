"""Reads and writes video files, latent files and pictures. Uses PyAV, numpy and torch, not ComfyUI.

audio    checks audio and encodes it alongside the frames
codecs   the codecs on offer, and every check that needs no frame
encoder  writes one video file, frame by frame, in BT.709
errors   turns FFmpeg's errors into OSErrors
frames   buffers decoded frames for the encoder, in 8 or 16 bits
image    reads one picture
latents  reads and writes latent files
prefix   validates file name prefixes and fills in their placeholders
reader   reads the frames of a file one at a time
"""
