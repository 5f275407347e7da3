"""Learning from few labels: one strategy in several phases."""
