"""Learning from few labels (DDSA-FSSL, arXiv 2501.02219): which pseudo-labels count, and what silos synthesise."""
