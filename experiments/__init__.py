"""Runs that measure the library; users of it, never imported by it."""
