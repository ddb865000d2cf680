"""Training UltraGen on one's own videos: `tools/train.py`, docs/training.md. Needs accelerate, and peft for LoRA."""
