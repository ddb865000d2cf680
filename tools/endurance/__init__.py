"""Endurance runs on a real server, which must lose nothing: kills, faults, and two servers on one folder."""
