"""Every function that has a Triton form, beside its plain PyTorch form, which defines it."""
