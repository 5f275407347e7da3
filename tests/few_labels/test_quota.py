from __future__ import annotations

import pytest
import torch

from fedsynth.few_labels.quota import QUOTAS, deal, gap_quota, missing_quota


def random_counts(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 60, (6, 10), generator=generator) * (torch.rand((6, 10), generator=generator) < 0.4)


def test_quota_of_missing_classes_by_hand() -> None:
    counts = torch.tensor([[4, 0, 2], [0, 6, 0], [1, 1, 1]])
    # Silo 0 has 6 of the 8 labels of classes 0 and 2, and so a share of 6/8 of the 7 of class 1: 5.25.
    # Silo 1 has 6 of the 7 of class 1: 6/7 of 5 are 4.29, of 3 are 2.57. Silo 2 lacks nothing.
    assert missing_quota(counts).tolist() == [[0, 5, 0], [4, 0, 3], [0, 0, 0]]
    assert missing_quota(counts, 2.0).tolist() == [[0, 11, 0], [9, 0, 5], [0, 0, 0]]


def test_quota_of_gaps_by_hand() -> None:
    counts = torch.tensor([[4, 0, 2], [0, 6, 0], [1, 1, 1]])
    # All labels: 5, 7, 3 of 15. Silo 0: N = max(4/5, 2/3) 15 = 12, shares 4, 5.6, 2.4.
    # Silo 1: N = 6/7 15, shares 4.29, 6, 2.57. Silo 2: N = 15/3, shares 1.67, 2.33, 1.
    assert gap_quota(counts).tolist() == [[0, 6, 0], [4, 0, 3], [1, 1, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_missing_classes_bring_a_silo_to_its_share_of_all_labels(seed: int) -> None:
    counts = random_counts(seed)
    quota, total = missing_quota(counts), counts.sum(0)
    assert not quota[counts > 0].any()
    for mine, made in zip(counts, quota, strict=True):
        if mine.sum():
            whole = mine.sum() * total.sum() / total[mine > 0].sum()
            assert abs(mine.sum() + made.sum() - whole) <= 0.5 * (mine == 0).sum()


@pytest.mark.parametrize("seed", range(5))
def test_gaps_are_filled_up_to_the_shares_of_all_labels(seed: int) -> None:
    counts = random_counts(seed)
    after = counts + gap_quota(counts)
    total = counts.sum(0)
    for mine, before in zip(after, counts, strict=True):
        if not before.sum():
            continue
        goal = (before[before > 0] / total[before > 0]).max()
        assert torch.all((mine - goal * total).abs() <= 0.5 + 1e-6)


@pytest.mark.parametrize("rule", QUOTAS.values())
def test_whoever_has_no_labels_gets_nothing_nor_anybody_of_a_class_without_labels(rule: object) -> None:
    counts = torch.tensor([[3, 2, 0], [0, 0, 0], [1, 0, 0]])
    quota = rule(counts)  # type: ignore[operator]
    assert quota[1].tolist() == [0, 0, 0]
    assert quota[:, 2].tolist() == [0, 0, 0]
    assert quota[2, 1] > 0
    assert not rule(torch.zeros((2, 3), dtype=torch.int64)).any()  # type: ignore[operator]


@pytest.mark.parametrize("rule", QUOTAS.values())
def test_the_order_of_silos_and_classes_changes_nothing(rule: object) -> None:
    counts = random_counts(9)
    rows, columns = torch.randperm(6), torch.randperm(10)
    assert torch.equal(rule(counts)[rows][:, columns], rule(counts[rows][:, columns]))  # type: ignore[operator]


def test_images_are_dealt_to_those_who_want_their_class_the_first_first() -> None:
    labels = torch.tensor([1, 0, 1, 1, 2, 0, 1])
    wanted = torch.tensor([[1, 2, 0], [0, 1, 1], [1, 1, 3]])
    assert deal(labels, wanted).tolist() == [0, 0, 0, 1, 1, 2, 2]
    # Of class 1 an image less: the last taker goes short.
    assert deal(labels[1:], wanted).tolist() == [0, 0, 0, 1, 2, 1]
    assert deal(labels[:0], wanted).tolist() == []
