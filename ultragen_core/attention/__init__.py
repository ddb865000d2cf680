"""UltraGen's attention in plain PyTorch (arXiv 2510.18775): windows, coarse branches, gates, one layer."""
