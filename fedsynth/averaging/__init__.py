"""How several models become one: pure functions on named tensors, no network, no file, no clock.

Every rule gives the same bits on every machine: values are taken in the order given, multiplied and added one by one in
float64, without a matrix product, a fused multiply-add or threads.
"""

from fedsynth.averaging.coordinatewise import mean_around_median, median, trimmed_mean
from fedsynth.averaging.layers import Layers, combine_layers, weighted_mean

__all__ = ["Layers", "combine_layers", "mean_around_median", "median", "trimmed_mean", "weighted_mean"]
