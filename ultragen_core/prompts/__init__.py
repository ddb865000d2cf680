"""Prompt lists as people write them."""
