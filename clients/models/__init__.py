"""The models of a silo."""
