from __future__ import annotations

import numpy as np
import pytest

from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.data.label_split import labelled_rows, spread_labelled
from fedsynth.errors import UserError

LABELS = np.repeat(np.arange(5), [100, 35, 30, 9, 1])


def test_a_share_of_every_class_is_labelled_and_one_image_at_least() -> None:
    rows = labelled_rows(LABELS, np.arange(len(LABELS)), 0.1, 0, 3)
    assert np.bincount(LABELS[rows]).tolist() == [10, 4, 3, 1, 1]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert not np.array_equal(rows, labelled_rows(LABELS, np.arange(len(LABELS)), 0.1, 1, 3))
    assert len(labelled_rows(LABELS, np.empty(0, np.int64), 0.1, 0, 0)) == 0


@pytest.mark.parametrize("alpha", [0.01, 0.3, 100.0])
def test_labelled_images_are_spread_by_a_draw_of_their_own(alpha: float) -> None:
    parts = np.array_split(np.random.default_rng(0).permutation(len(LABELS)), 4)
    whole, labelled = spread_labelled(LABELS, parts, 0.2, alpha, 0)
    everything = np.concatenate(whole)
    assert sorted(everything.tolist()) == list(range(len(LABELS)))
    for part, known in zip(whole, labelled, strict=True):
        assert np.isin(known, part).all()
    assert np.bincount(LABELS[np.concatenate(labelled)]).tolist() == [20, 7, 6, 2, 1]
    # What is not labelled stays where the partition has it.
    for part, before, known in zip(whole, parts, labelled, strict=True):
        assert np.isin(np.setdiff1d(part, known), before).all()
    shares = np.stack([np.bincount(LABELS[known], minlength=5) for known in labelled])
    assert bool(shares[:, 0].max() == 20) is (alpha == 0.01)


def federation_of(**changes: object) -> tuple[RunConfig, object]:
    given = {"strategy": "ddsa", "dataset": "digits", "num-clients": 3, "alpha": 0.3, **changes}
    config = RunConfig.from_run_config(given)  # type: ignore[arg-type]
    return config, load_federation(config)


@pytest.mark.parametrize("alpha", ["none", 0.3])
def test_a_silo_knows_some_labels_and_holds_out_none_of_them(alpha: object) -> None:
    config, federation = federation_of(**{"labelled-alpha": alpha})
    manifest = federation.manifest(config)  # type: ignore[attr-defined]
    seen = 0
    for k, part in enumerate(federation.parts):  # type: ignore[attr-defined]
        silo = federation.silo(k, config)  # type: ignore[attr-defined]
        assert silo.unlabelled is not None
        assert len(silo.train) + len(silo.unlabelled) + len(silo.holdout) == len(part)
        assert len(silo.train) == len(manifest["clients"][k]["labelled-indices"])
        seen += len(silo.train) + len(silo.unlabelled)
        plain = RunConfig.from_run_config({"dataset": "digits", "num-clients": 3, "alpha": 0.3})
        if alpha == "none":
            other = load_federation(plain).silo(k, plain)
            assert other.unlabelled is None
            assert other.holdout.fingerprint() == silo.holdout.fingerprint()
    assert len(federation.union(config)) == seen  # type: ignore[attr-defined]
    assert manifest["params"]["labelled_alpha"] == alpha
    assert "the labels of" in federation.describe_split(config)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "fedavg", "labelled-fraction": 0.5}, "labelled-fraction = 0.5: acts with strategy = 'ddsa'"),
        ({"labelled-alpha": 0.3, "partition": "natural", "dataset": "hf:x"}, "labelled-alpha = 0.3: acts with partit"),
        ({"labelled-alpha": 0.3, "dataset": "imagefolder", "group-column": "patient"}, "drawn away from their groups"),
        ({"dataset": "silos", "compare-classifiers": "all"}, "'all' learns from every true label"),
        ({"dp-epsilon": 1.0}, "dp-epsilon = 1.0: strategy = 'ddsa' has silos train classifiers"),
        ({"compare-classifiers": "labelled,mlp"}, "compare-classifiers = 'labelled,mlp': must name each of labelled,"),
        ({"classifier-rounds": 9, "classifier-steps": 8}, "classifier-rounds = 9: must be <= classifier-steps = 8"),
        ({"pseudo-selection": "all", "pseudo-bins": 5}, "pseudo-bins = 5: acts with pseudo-selection = 'precision'"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        RunConfig.from_run_config({"strategy": "ddsa", **given})  # type: ignore[dict-item]
