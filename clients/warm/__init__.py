"""A silo whose process stays between messages (opt-in; uses Flower's internals)."""
