"""fedsynth: several institutions make one synthetic image dataset together, without showing anyone their images."""

__version__ = "0.1.0"
