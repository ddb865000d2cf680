"""Train UltraGen on your own videos, see README.md. Needs accelerate, and peft for LoRA."""
