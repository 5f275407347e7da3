"""What crosses between server and silos."""
