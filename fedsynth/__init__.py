"""fedsynth: several institutions make one synthetic image dataset together, without showing anyone their images."""
