"""Parses prompt lists: plain text, CSV and JSON. No ComfyUI.

formats  detects the format and parses JSON
lines    parses plain text
table    parses CSV
entries  validates the entries
items    combines entries with the node's defaults, one item per video
"""
