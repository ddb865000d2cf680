"""Attention of one video over several members, each of which holds a rectangle of every frame."""
