"""The Wan VAE in tiles, equal to its decode and encode of whole frames.

`parse` lists its layers, `geometry` says which part of each layer a tile needs, `decode` and `encode` run them.
"""
