"""Simulated silos: who owns which sample of the train fold."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsynth.config import NATURAL
from fedsynth.data.apportion import apportion
from fedsynth.data.labelled_images import Names
from fedsynth.data.origins import natural_parts, whole_groups
from fedsynth.data.subsampling import thin_out
from fedsynth.errors import UserError, did_you_mean, unknown_choice
from fedsynth.seeding import derive_seed

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Indices = NDArray[np.int64]
_DRAWS = 20


def partition(
    labels: Indices,
    scheme: str,
    num_clients: int,
    seed: int,
    *,
    samples_per_client: int = 0,
    silos: Names | None = None,
    groups: Names | None = None,
    **params: Any,
) -> list[Indices]:
    """Divide samples among clients; the same arguments always give the same split.

    No sample has two owners and no client is empty. ``iid``, ``dirichlet``, ``power-law``, ``pathological`` and
    ``disjoint`` hand out every sample. ``pairs`` leaves out the classes beyond ``num_clients`` + 1. ``natural`` gives
    client k the samples of the k-th silo by name.

    Args:
        labels: (N,) non-negative class labels.
        scheme: a key of :data:`PARTITIONS`, or ``natural``.
        num_clients: number of clients, 1 to N; of ``natural`` the number of silos.
        seed: the run's seed.
        samples_per_client: 0 for all samples, otherwise the mean over clients to which the parts are thinned out, see
            :func:`~fedsynth.data.subsampling.thin_out`.
        silos: (N,) names of the silos that the samples come from, which ``natural`` needs.
        groups: (N,) what each sample belongs to, such as a patient: no group has two owners. The schemes then hand out
            groups, each as a sample of its most frequent class.
        **params: what the scheme takes, see :func:`partition_parameters`.

    Returns:
        One sorted int64 index array per client.

    Raises:
        UserError: unknown scheme or parameter, a value out of range, a client that would stay empty, or a group at two
            natural silos.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if scheme not in (*PARTITIONS, NATURAL):
        raise unknown_choice("partition", scheme, (*PARTITIONS, NATURAL))
    _check_parameters(scheme, params)
    if samples_per_client < 0:
        raise UserError(f"samples-per-client = {samples_per_client} is out of range: give 0 (all) or a positive number")
    if scheme == NATURAL:
        parts = natural_parts(silos, groups, num_clients)
    else:
        units, unit_of = (labels, None) if groups is None else whole_groups(labels, groups)
        if not 1 <= num_clients <= len(units):
            what = "samples" if groups is None else "groups"
            raise UserError(f"num-clients = {num_clients} is out of range: {len(units)} {what} allow 1 to {len(units)}")
        parts = PARTITIONS[scheme](units, num_clients, derive_seed(seed, "partition", scheme), **params)
        if unit_of is not None:
            parts = [np.flatnonzero(np.isin(unit_of, part)) for part in parts]
    if 0 < samples_per_client * num_clients < sum(map(len, parts)):
        rng = np.random.default_rng(derive_seed(seed, "samples-per-client", scheme))
        counts = label_counts(labels, parts, int(labels.max()) + 1)
        parts = thin_out(labels, parts, counts, samples_per_client * num_clients, rng)
    return [np.sort(part) for part in parts]


def partition_parameters(scheme: str) -> tuple[str, ...]:
    """Return the names of the parameters that only this scheme takes."""
    if scheme == NATURAL:
        return ()
    parameters = inspect.signature(PARTITIONS[scheme]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def label_counts(labels: Indices, parts: Sequence[Indices], num_classes: int) -> NDArray[np.int64]:
    """Return the samples of every client and class, int64 (K, num_classes)."""
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts]).astype(np.int64)


def manifest(
    parts: Sequence[Indices],
    labels: Indices,
    classes: Sequence[str],
    scheme: str,
    seed: int,
    params: Mapping[str, Any],
    silos: Sequence[str] = (),
    labelled: Sequence[Indices] | None = None,
) -> dict[str, Any]:
    """Describe a partition, ready for JSON.

    Returns:
        ``scheme``, ``seed``, ``params``, ``classes``, ``clients`` (a list of ``partition-id``, ``indices``,
        ``label-counts`` in the order of ``classes``, if ``silos`` names them ``silo`` and, where ``labelled`` says
        which images' labels are known, ``labelled-indices``) and ``sha256``, the hash of the rest as compact JSON with
        sorted keys.
    """
    counts = label_counts(labels, parts, len(classes))
    clients: list[dict[str, Any]] = [
        {"partition-id": client, "indices": part.tolist(), "label-counts": row.tolist()}
        for client, (part, row) in enumerate(zip(parts, counts, strict=True))
    ]
    for client, name in zip(clients, silos, strict=False):
        client["silo"] = name
    for client, known in zip(clients, labelled or (), strict=False):
        client["labelled-indices"] = known.tolist()
    content = {"scheme": scheme, "seed": seed, "params": dict(params), "classes": list(classes), "clients": clients}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _check_parameters(scheme: str, params: Mapping[str, Any]) -> None:
    known = (*partition_parameters(scheme), "samples_per_client")
    for name in params:
        if name not in known:
            raise UserError(
                f"partition '{scheme}' has no parameter '{name}'{did_you_mean(name, known)} "
                f"(it has: {', '.join(known)})"
            )


def _iid(labels: Indices, num_clients: int, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    return _run_partitioner(IidPartitioner(num_clients), labels, seed)


def _dirichlet(labels: Indices, num_clients: int, seed: int, *, alpha: float = 0.1) -> list[Indices]:
    """Shares of every class over the clients ~ Dir(alpha), drawn again while a client has too few samples."""
    from flwr_datasets.partitioner import DirichletPartitioner

    if not (np.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha = {alpha} is out of range: give a number above 0 (0.1: very skewed, 100: nearly even)")
    smallest = _smallest_client(labels, num_clients)

    def draw(draw_seed: int) -> list[Indices] | None:
        partitioner = DirichletPartitioner(
            num_clients, "label", float(alpha), min_partition_size=smallest, shuffle=False, seed=draw_seed
        )
        try:
            return _run_partitioner(partitioner, labels, draw_seed)
        except ValueError:  # its own ten attempts were in vain
            return None

    return _first_success(draw, seed, f"dirichlet with alpha = {alpha}", "raise alpha, lower num-clients")


def _power_law(labels: Indices, num_clients: int, seed: int) -> list[Indices]:
    """Counts over (client, class) proportional to log-normal(0, 2) draws (Li et al. 2020, arXiv 1812.06127).

    Columns are scaled to the samples there are (our choice). Flower's DistributionPartitioner does not fit: it wants a
    number of clients divisible by that of classes.
    """
    num_classes = int(labels.max()) + 1
    smallest = _smallest_client(labels, num_clients)

    def draw(draw_seed: int) -> list[Indices] | None:
        rng = np.random.default_rng(draw_seed)
        weights = rng.lognormal(0, 2, (num_clients, num_classes))
        totals = np.bincount(labels)
        counts = np.stack([apportion(total, weights[:, label]) for label, total in enumerate(totals)], axis=1)
        return _hand_out(labels, counts, rng) if counts.sum(axis=1).min() >= smallest else None

    return _first_success(draw, seed, "power-law", "choose another seed, lower num-clients")


def _pathological(labels: Indices, num_clients: int, seed: int, *, classes_per_client: int = 3) -> list[Indices]:
    """Exactly ``classes_per_client`` classes per client, each class shared evenly by its owners.

    Every client takes the classes with the fewest owners so far, at random among equals. Flower's
    PathologicalPartitioner does not fit: with fewer clients than classes it leaves classes without an owner.
    """
    counts = np.bincount(labels)
    present = int(np.count_nonzero(counts))
    if not 1 <= classes_per_client <= present:
        raise UserError(f"classes-per-client = {classes_per_client} is out of range: the data has {present} classes")
    if num_clients * classes_per_client < present:
        raise UserError(
            f"{num_clients} clients with classes-per-client = {classes_per_client} cannot own {present} classes: raise "
            f"classes-per-client to {-(-present // num_clients)} or num-clients to "
            f"{-(-present // classes_per_client)}"
        )
    rng = np.random.default_rng(seed)
    owned = np.zeros((num_clients, len(counts)), dtype=bool)
    for row in owned:
        owners = owned.sum(axis=0)
        free = rng.permutation(np.flatnonzero(counts > owners))
        row[free[np.argsort(owners[free], kind="stable")[:classes_per_client]]] = True
    if owned.sum(axis=1).min() < classes_per_client:
        raise UserError(
            f"too few samples for {num_clients} clients with {classes_per_client} classes each: lower "
            "num-clients or classes-per-client"
        )
    return _share_evenly(labels, owned, rng)


def _pairs(labels: Indices, num_clients: int, seed: int) -> list[Indices]:
    """Client i has the classes i and i + 1, modulo the number of classes."""
    from flwr_datasets.partitioner import PathologicalPartitioner

    present = len(np.unique(labels))
    if present < 2:
        raise UserError("partition 'pairs' needs at least 2 classes, the data has 1: choose 'iid'")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Classes: .* will NOT be used")
        partitioner = PathologicalPartitioner(num_clients, "label", 2, "deterministic", shuffle=False)
        try:
            return _run_partitioner(partitioner, labels, seed)
        except ValueError as error:
            raise UserError("a class has fewer samples than owners: lower num-clients") from error


def _disjoint(labels: Indices, num_clients: int, seed: int) -> list[Indices]:
    """No class on two clients, except the most frequent class on two."""
    counts = np.bincount(labels)
    classes = np.flatnonzero(counts)
    frequent = int(counts.argmax())
    rng = np.random.default_rng(seed)
    deal = [*[frequent] * min(2, counts[frequent]), *rng.permutation(classes[classes != frequent])]
    if num_clients > len(deal):
        raise UserError(
            f"partition 'disjoint' of {len(classes)} classes has room for {len(deal)} clients, not {num_clients}: "
            "lower num-clients"
        )
    owned = np.zeros((num_clients, len(counts)), dtype=bool)
    order = rng.permutation(num_clients)
    for position, label in enumerate(deal):
        owned[order[position % num_clients], label] = True
    return _share_evenly(labels, owned, rng)


def _run_partitioner(partitioner: Partitioner, labels: Indices, seed: int) -> list[Indices]:
    """Run one of Flower's partitioners on shuffled rows: they cut every class in row order."""
    from datasets import Dataset

    order = np.random.default_rng(seed).permutation(len(labels))
    partitioner.dataset = Dataset.from_dict({"index": order, "label": labels[order]})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified min_partition_size")
        parts = [partitioner.load_partition(client)["index"] for client in range(partitioner.num_partitions)]
    return [np.asarray(part[:], dtype=np.int64) for part in parts]


def _smallest_client(labels: Indices, num_clients: int) -> int:
    """Return the samples a random split must leave each client: a twentieth of the mean (our choice), at least one.

    Relative to the mean, so that thinning out to 300 per client leaves enough to train on.
    """
    return max(1, len(labels) // (20 * num_clients))


def _first_success(draw: Callable[[int], list[Indices] | None], seed: int, what: str, remedy: str) -> list[Indices]:
    for attempt in range(_DRAWS):
        parts = draw(derive_seed(seed, "draw", attempt))
        if parts is not None:
            return parts
    raise UserError(
        f"{what} leaves a client with too few samples in {_DRAWS} draws: {remedy} or choose another partition"
    )


def _share_evenly(labels: Indices, owned: NDArray[np.bool_], rng: np.random.Generator) -> list[Indices]:
    """Share every class evenly between the clients that own it; owned: (K, C)."""
    totals = np.bincount(labels, minlength=owned.shape[1])
    counts = np.zeros(owned.shape, np.int64)
    for label in np.flatnonzero(totals):
        counts[:, label] = apportion(totals[label], owned[:, label].astype(np.int64))
    return _hand_out(labels, counts, rng)


def _hand_out(labels: Indices, counts: NDArray[np.int64], rng: np.random.Generator) -> list[Indices]:
    """Give client k ``counts[k, c]`` random samples of class c; counts: (K, C), columns sum to the class sizes."""
    parts: list[list[Indices]] = [[] for _ in counts]
    for label, column in enumerate(counts.T):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, np.split(shuffled, np.cumsum(column)[:-1]), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


PARTITIONS: dict[str, Callable[..., list[Indices]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "power-law": _power_law,
    "pathological": _pathological,
    "pairs": _pairs,
    "disjoint": _disjoint,
}
"""Schemes by name. Each takes (labels, num_clients, seed) and its own keyword parameters."""
