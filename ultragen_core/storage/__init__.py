"""Files that survive crashes: names, whole-or-nothing writes, tensors read without mapping, saved states."""
