"""Writes workflows/, subgraphs/ and docs/headless."""
