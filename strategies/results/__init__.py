"""The end of a run: measuring, attacking, publishing."""
