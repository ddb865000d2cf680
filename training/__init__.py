"""Training UltraGen on your own videos: docs/training.md. Needs accelerate, and peft for LoRA."""
