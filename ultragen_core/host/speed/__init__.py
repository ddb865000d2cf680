"""Measures the card of this computer, and keeps the result for UltraGen Plan."""
