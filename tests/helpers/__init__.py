"""Shared by tests: toy models, graphs, runs."""
