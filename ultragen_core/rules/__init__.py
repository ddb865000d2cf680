"""Which block runs what, on which token grid, at which step: arithmetic, without a model."""
