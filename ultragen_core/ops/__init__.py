"""Every function that has a Triton form, next to its plain PyTorch form, which defines it."""
