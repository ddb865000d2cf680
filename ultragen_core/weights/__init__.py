"""File formats in and out: published UltraGen checkpoints and extras-only safetensors."""
