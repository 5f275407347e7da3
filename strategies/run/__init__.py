"""One run: its start, rounds, checkpoints, status and costs."""
