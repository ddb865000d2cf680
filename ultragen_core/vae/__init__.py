"""The Wan VAE in tiles, equal to the untiled one.

`walk` reads it, `geometry` says what a tile needs, `decode` and `encode` run it.
"""
