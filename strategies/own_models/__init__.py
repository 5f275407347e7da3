"""Strategies in which every silo trains a model of its own."""
