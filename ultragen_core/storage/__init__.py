"""Files that survive crashes: atomic writes, new names, tensors read without mapping, states of sampling runs."""
