"""What fedsynth costs in time and memory, measured on the machine at hand."""
