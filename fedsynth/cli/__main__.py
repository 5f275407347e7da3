"""``python -m fedsynth.cli``."""

from fedsynth.cli import command

command()
