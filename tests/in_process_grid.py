from experiments.in_process_grid import InProcessGrid

__all__ = ["InProcessGrid"]
