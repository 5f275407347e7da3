"""What a node of a run is."""

from __future__ import annotations

SILO = "silo"
AGGREGATOR = "aggregator"
"""Holds no images, and combines the silos' answers beside others of its kind: ``role`` of its node config."""
