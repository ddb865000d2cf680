"""A miniature of the whole pipeline: painted landscape videos to train small models on, and to judge them by."""
