"""What tests share: toy models, graphs, runs."""
