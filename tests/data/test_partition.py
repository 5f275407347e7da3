from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from fedsynth.data import PARTITIONS, label_counts, load_dataset, manifest, partition
from fedsynth.errors import UserError

LABELS = load_dataset("digits")[0].labels
SCHEMES = list(PARTITIONS)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_disjoint_covering_without_empty_client_and_decided_by_the_seed(scheme: str) -> None:
    np.random.seed(0)
    expected = np.random.random(3).tolist()
    np.random.seed(0)
    parts, again, other = (partition(LABELS, scheme, 10, seed) for seed in (5, 5, 6))
    assert np.random.random(3).tolist() == expected
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    assert [part.tolist() for part in parts] != [part.tolist() for part in other]
    assert len(parts) == 10
    assert all(part.dtype == np.int64 and len(part) and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    rare = partition(np.array([2, 5, 9, 11])[np.arange(400) % 4], scheme, 4, 0)
    assert sorted(np.concatenate(rare)) == list(range(400)), "classes that never occur do no harm"
    assert all(len(part) for part in rare)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_subsampling_keeps_the_mean_and_every_class(scheme: str) -> None:
    wanted, all_parts = 13, partition(LABELS, scheme, 10, 0)
    full = label_counts(LABELS, all_parts, 10)
    parts = partition(LABELS, scheme, 10, 0, samples_per_client=wanted)
    kept = label_counts(LABELS, parts, 10)
    assert all(set(few) <= set(many) for few, many in zip(parts, all_parts, strict=True))
    assert kept.sum() == 10 * wanted
    assert len(np.unique(np.concatenate(parts))) == 10 * wanted
    assert np.abs(kept - full * kept.sum() / full.sum()).max() <= 1
    assert (kept <= full).all()
    assert kept.sum(axis=0).min() >= 1
    assert kept.sum(axis=1).min() >= 1


def test_subsampling_keeps_a_rare_class_and_a_small_client() -> None:
    labels = np.repeat([0, 1], [10000, 1])
    parts = partition(labels, "iid", 2, 0, samples_per_client=5)
    assert label_counts(labels, parts, 2).sum(axis=0).tolist() == [9, 1]


def test_dirichlet_skew_follows_alpha() -> None:
    def largest_share(alpha: float) -> float:
        tables = [label_counts(LABELS, partition(LABELS, "dirichlet", 10, s, alpha=alpha), 10) for s in range(8)]
        return float(np.mean([table.max(axis=0) / table.sum(axis=0) for table in tables]))

    # The same quantity drawn straight from the definition.
    expected = np.random.default_rng(0).dirichlet([0.1] * 10, 20000).max(axis=1).mean()
    assert largest_share(0.1) == pytest.approx(expected, abs=0.08)
    assert largest_share(1000.0) < 0.13


def test_power_law_spread_is_log_normal() -> None:
    labels = np.repeat(np.arange(10), 20000)
    tables = [label_counts(labels, partition(labels, "power-law", 10, seed), 10) for seed in range(20)]
    # Shares are draws divided by their class's sum: differences of logarithms within a class have variance 2 * 2^2.
    logs = np.log(np.maximum(np.stack(tables), 0.5))
    variance = np.mean((logs[:, 0] - logs[:, 1]) ** 2)
    assert variance == pytest.approx(8.0, rel=0.25)


@pytest.mark.parametrize("num_clients", [4, 23])
def test_pathological_counts_exactly_and_owns_every_class(num_clients: int) -> None:
    counts = label_counts(LABELS, partition(LABELS, "pathological", num_clients, 1), 10)
    assert (np.count_nonzero(counts, axis=1) == 3).all()
    owners = np.count_nonzero(counts, axis=0)
    assert owners.min() >= 1
    assert owners.max() - owners.min() <= 1


def test_pathological_spares_rare_classes() -> None:
    labels = np.repeat(np.arange(8), [500, 500, 500, 500, 500, 500, 500, 2])
    counts = label_counts(labels, partition(labels, "pathological", 10, 0), 8)
    assert (np.count_nonzero(counts, axis=1) == 3).all()
    assert counts[:, 7].sum() == 2


@pytest.mark.parametrize("num_clients", [1, 12])
def test_pairs_are_neighbouring_classes(num_clients: int) -> None:
    counts = label_counts(LABELS, partition(LABELS, "pairs", num_clients, 0), 10)
    for client, row in enumerate(counts):
        assert set(np.flatnonzero(row)) == {client % 10, (client + 1) % 10}


@pytest.mark.parametrize(("num_clients", "num_classes"), [(8, 15), (11, 10)])
def test_disjoint_shares_only_the_most_frequent_class(num_clients: int, num_classes: int) -> None:
    labels = np.repeat(np.arange(num_classes), [20] * (num_classes - 1) + [30])
    counts = label_counts(labels, partition(labels, "disjoint", num_clients, 0), num_classes)
    assert np.count_nonzero(counts, axis=0).tolist() == [1] * (num_classes - 1) + [2]
    per_client = np.count_nonzero(counts, axis=1)
    assert per_client.max() - per_client.min() <= 1


def test_manifest_survives_json_and_hashes_its_content() -> None:
    classes = tuple("0123456789")
    parts = partition(LABELS, "dirichlet", 10, 4, alpha=0.5)
    record = manifest(parts, LABELS, classes, "dirichlet", 4, {"alpha": 0.5})
    again = json.loads(json.dumps(record))
    assert again == record
    assert [client["indices"] for client in again["clients"]] == [part.tolist() for part in parts]
    assert [client["label-counts"] for client in again["clients"]] == label_counts(LABELS, parts, 10).tolist()
    digest = again.pop("sha256")
    assert hashlib.sha256(json.dumps(again, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == digest
    parts[0], parts[1] = parts[1], parts[0]
    assert manifest(parts, LABELS, classes, "dirichlet", 4, {"alpha": 0.5})["sha256"] != digest


@pytest.mark.parametrize(
    ("labels", "scheme", "num_clients", "options", "said"),
    [
        (LABELS[:10], "iid", 11, {}, "num-clients = 11 is out of range: 10 samples"),
        (LABELS, "iid", 2, {"samples_per_client": 1}, r"samples-per-client = 1 is too small .* raise it to 5 or more"),
        (LABELS, "iid", 2, {"samples_per_client": -1}, "samples-per-client = -1"),
        (LABELS % 2, "dirichlet", 30, {"alpha": 0.001}, r"alpha = 0\.001 .* raise alpha, lower num-clients"),
        (LABELS, "dirichlet", 10, {"alpha": 0}, r"alpha = .* out of range"),
        (LABELS, "dirichlet", 10, {"alpha": float("inf")}, r"alpha = .* out of range"),
        (LABELS, "pathological", 2, {}, "classes-per-client to 5 or num-clients to 4"),
        (LABELS, "pathological", 10, {"classes_per_client": 11}, r"classes-per-client = 11 .* 10 classes"),
        (np.arange(12) % 4, "pathological", 10, {"classes_per_client": 3}, "too few samples"),
        (LABELS[:10] * 0, "pairs", 2, {}, "at least 2 classes"),
        (np.arange(20) % 10, "pairs", 20, {}, "fewer samples than owners"),
        (LABELS, "dirichlett", 10, {}, r"unknown partition 'dirichlett': did you mean 'dirichlet'\?"),
        (LABELS, "dirichlet", 10, {"alfa": 0.1}, r"'dirichlet' has no parameter 'alfa': did you mean 'alpha'\?"),
        (LABELS, "iid", 10, {"alpha": 0.1}, "'iid' has no parameter 'alpha'"),
    ],
)
def test_what_is_impossible_names_the_way_out(
    labels: np.ndarray, scheme: str, num_clients: int, options: dict[str, float], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        partition(labels, scheme, num_clients, 0, **options)
