"""What the pictures of a report need: which images are shown, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.manifold import TSNE

from fedsynth.evaluation.image_set import Images, Labels, flat
from fedsynth.evaluation.memorisation import AS_THEY_ARE, Forms, centred_samples, nearest_neighbours
from fedsynth.seeding import derive_seed

Distances = npt.NDArray[np.float64]

TRIPLES = 16
EMBEDDED = 400
PERPLEXITY = 30.0


@dataclass(frozen=True, eq=False)
class Triples:
    """Synthetic images, the training image nearest to each, and the training image nearest to that one.

    Attributes:
        synthetic, real, next_real: uint8 (n, H, W, C).
        distances, next_distances: Euclidean, from the first to the second and from the second to the third, (n,).
        num_closest: the first so many are the closest pairs of the whole set; the others are drawn at random.
        copy_distance: fresh real images come so near to a training image once in twenty times; NaN if unknown.
    """

    synthetic: Images
    real: Images
    next_real: Images
    distances: Distances
    next_distances: Distances
    num_closest: int
    copy_distance: float


@dataclass(frozen=True, eq=False)
class Embedding:
    """Real and synthetic images as points of a plane (t-SNE).

    Attributes:
        points: float (N, 2).
        labels: class of each (N,).
        synthetic: whether it is synthetic, bool (N,).
        space: the feature space that was flattened.
    """

    points: npt.NDArray[np.float32]
    labels: Labels
    synthetic: npt.NDArray[np.bool_]
    space: str


@dataclass(frozen=True, eq=False)
class Illustration:
    """Data of the pictures of one synthetic set.

    Attributes:
        triples: for the eye to look for copies; distances in pixels.
        embedding: for the eye to see what is missing.
    """

    triples: Triples
    embedding: Embedding


def nearest_triples(
    synthetic: Images, train: Images, seed: int, copy_distance: float, forms: Forms = AS_THEY_ARE
) -> Triples:
    """Find the eight synthetic images nearest to training images, and draw as many of the others.

    Args:
        synthetic: uint8 (N, H, W, C), N >= 2; fewer than 16 give fewer triples.
        train: uint8 (M, H, W, C), M >= 2, what the generators saw. The picture belongs to the owner of these.
        seed: fixes the draw.
        copy_distance: see :class:`Triples`.
        forms: in which the generators may return training images; shown is what they saw.
    """
    returned, seen = forms.returned(train), np.concatenate(forms.seen(train))
    points, references = centred_samples(synthetic=flat(synthetic), train=flat(np.concatenate(returned)))
    nearest, distances = nearest_neighbours(points, references)
    order = np.argsort(distances, kind="stable")
    closest = order[: min(TRIPLES // 2, len(order))]
    others = np.random.default_rng(derive_seed(seed, "triples")).permutation(order[len(closest) :])
    shown = np.concatenate([closest, others[: TRIPLES - TRIPLES // 2]])
    pairs = nearest[shown]
    following, next_distances = nearest_neighbours(references[pairs], references, pairs, len(returned))
    images = synthetic[shown], seen[pairs % len(seen)], seen[following % len(seen)]
    return Triples(*images, distances[shown], next_distances, len(closest), copy_distance)


Points = tuple[npt.NDArray[np.float32], Labels]


def embed(real: Points, synthetic: Points, space: str, seed: int) -> Embedding:
    """Lay out the features of two sets in one plane by t-SNE (van der Maaten & Hinton 2008).

    Args:
        real: features (N, D) and classes (N,), N >= 2; quick up to some hundred.
        synthetic: features (M, D) and classes (M,), M >= 2.
        space: what the features are.
        seed: fixes the start.
    """
    features = np.concatenate([real[0], synthetic[0]])
    # scikit-learn takes 32-bit seeds only. Its start from principal components would divide by a spread of zero.
    layout = TSNE(
        perplexity=min(PERPLEXITY, (len(features) - 1) / 3),
        init="random",
        random_state=derive_seed(seed, "embedding") & 0xFFFFFFFF,
        n_jobs=1,
    )
    labels = np.concatenate([real[1], synthetic[1]])
    is_synthetic = np.repeat([False, True], [len(real[1]), len(synthetic[1])])
    return Embedding(layout.fit_transform(features), labels, is_synthetic, space)
