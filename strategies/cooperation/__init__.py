"""Cooperative inference (DfD): the server refines a synthetic set with the silos' noise predictions."""
