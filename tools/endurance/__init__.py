"""Long runs on a real server that ought to lose nothing: kills, faults, and two servers on one folder."""
