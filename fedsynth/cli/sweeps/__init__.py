"""Sweeps: the file, the plan, the processes."""
