"""The silo side: what one institution runs."""
