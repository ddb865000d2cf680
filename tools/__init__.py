"""What a developer types: set-up, demo, tests. Nothing here is shipped with the pack."""
