"""Which models Krum and Bulyan choose, by the distances between them.

Krum and MultiKrum: Blanchard et al. 2017, arXiv 1703.02757, Sections 3 and 4. Bulyan: El Mhamdi et al. 2018,
arXiv 1802.07927, Section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fedsynth.averaging.layers import Layers, chunk_length, fill, working_memory
from fedsynth.threads import one_thread

KRUM_PER_MALICIOUS, BULYAN_PER_MALICIOUS = 2, 4
"""Needed are these times f, and 3, models: the papers' guarantees."""


def squared_distances(models: Sequence[Layers]) -> torch.Tensor:
    """Squared Euclidean distances between models with equal names and shapes, the same bits on every machine.

    Values are subtracted before they are squared, in float64: models that are almost equal keep their distances, and
    one that is far away from all others spoils only its own. Whole-number buffers are left out.

    Args:
        models: K >= 1, finite; left as they are.

    Returns:
        float64 of shape (K, K), symmetric, with a zero diagonal.
    """
    return squared_distances_by_parts([models], len(models))


@one_thread()
def squared_distances_by_parts(parts: Iterable[Sequence[Layers]], number: int) -> torch.Tensor:
    """As :func:`squared_distances`, bit for bit, of models that are read part by part.

    Args:
        parts: some layers of all models at a time; together those of the models, in their order.
        number: of models, K.
    """
    distances = torch.zeros(number, number, dtype=torch.float64)
    memory, differences = working_memory(number), working_memory(number)
    for models in parts:
        _add_squared_distances(distances, models, memory, differences)
    return distances + distances.T


def _add_squared_distances(
    distances: torch.Tensor, models: Sequence[Layers], memory: torch.Tensor, differences: torch.Tensor
) -> None:
    """Add the squared distances of some layers above the diagonal."""
    number = len(models)
    for name in models[0]:
        layers = [model[name].reshape(-1) for model in models]
        if not layers[0].is_floating_point() or not layers[0].numel():
            continue
        for chunks in zip(*(layer.split(chunk_length(number)) for layer in layers), strict=True):
            rows = fill(memory, chunks)
            for k in range(number - 1):
                others = rows[k + 1 :]
                squares = differences[: others.numel()].view(others.shape)
                torch.sub(others, rows[k], out=squares)
                distances[k, k + 1 :] += _sums(squares.square_())


def _sums(rows: torch.Tensor) -> torch.Tensor:
    """Return the sums (K,) of rows (K, n), which are overwritten: their halves are added until one number is left.

    Not sum(), nor pdist(): the order in which those add depends on the CPU's vectors.
    """
    length = rows.shape[1]
    while length > 1:
        half = length // 2
        rows[:, :half] += rows[:, length - half : length]
        length -= half
    return rows[:, 0]


def krum_scores(distances: torch.Tensor, num_malicious: int) -> torch.Tensor:
    """Krum scores (Blanchard et al. 2017, arXiv 1703.02757, Section 4): the lower, the better.

    Args:
        distances: squared, of shape (K, K).
        num_malicious: f >= 0; K >= f + 3, and the paper's guarantee needs K >= 2f + 3, which callers check.

    Returns:
        For every model the sum of its squared distances to the K - f - 2 nearest others, of shape (K,).

    Raises:
        ValueError: no other model would count.
    """
    neighbours = len(distances) - num_malicious - 2
    if num_malicious < 0 or neighbours < 1:
        raise ValueError(f"num_malicious = {num_malicious}: must be >= 0 and <= {len(distances) - 3}")
    return _scores(distances, neighbours)


def krum_select(distances: torch.Tensor, num_malicious: int, count: int) -> list[int]:
    """Choose the models of Multi-Krum, or of Krum with ``count`` 1.

    Args:
        distances: squared, of shape (K, K).
        num_malicious: as in :func:`krum_scores`.
        count: models to choose.

    Returns:
        Their positions, the best first; of equal scores the smaller position comes first.

    Raises:
        ValueError: as :func:`krum_scores`, or ``count`` out of range.
    """
    if not 1 <= count <= len(distances):
        raise ValueError(f"count = {count}: must be >= 1 and at most {len(distances)}, the number of models")
    return krum_scores(distances, num_malicious).argsort(stable=True)[:count].tolist()


def bulyan_select(distances: torch.Tensor, num_malicious: int) -> list[int]:
    """Choose the models of Bulyan's first step (El Mhamdi et al. 2018, arXiv 1802.07927, Section 4).

    Krum's winner is taken out of the models again and again, K - 2f times. Its scores count the r - f - 2 nearest of
    the r models that remain. The last choices have r < f + 3, where the paper's own rule would count none: our choice
    is to count one then. They are as little guaranteed as in the paper, since r < 2f + 3; up to f hostile models may
    be chosen, which the second step withstands.

    Args:
        distances: squared, of shape (K, K).
        num_malicious: f >= 0 with 2f < K; the paper's guarantee needs K >= 4f + 3, which callers check.

    Returns:
        Their positions in the order of choice; of equal scores the smaller position comes first.

    Raises:
        ValueError: ``num_malicious`` out of range.
    """
    if not 0 <= 2 * num_malicious < len(distances):
        raise ValueError(f"num_malicious = {num_malicious}: must be >= 0 and less than half of {len(distances)} models")
    remaining = list(range(len(distances)))
    chosen = []
    for _ in range(len(distances) - 2 * num_malicious):
        neighbours = max(1, len(remaining) - num_malicious - 2)
        scores = _scores(distances[remaining][:, remaining], neighbours)
        chosen.append(remaining.pop(int(scores.argsort(stable=True)[0])))
    return chosen


def _scores(distances: torch.Tensor, neighbours: int) -> torch.Tensor:
    # A model's own distance goes by position: that of an equal model is zero too.
    itself = torch.eye(len(distances), dtype=torch.bool)
    ascending = distances.masked_fill(itself, torch.inf).sort(dim=1).values
    # One after the other: the order in which sum() adds depends on the CPU.
    scores = torch.zeros_like(ascending[:, 0])
    for nearest in ascending.T[:neighbours]:
        scores += nearest
    return scores
