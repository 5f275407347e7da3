"""``fedsynth privacy-plan``: the noise, what was measured, and the advice."""

from __future__ import annotations

import pytest

from fedsynth.cli import main
from fedsynth.privacy.expectations import ONE_SILO, nearest, quality_class


def test_few_images_are_advised_against(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy-plan", "--records", "300", "--silos", "10", "--epsilon", "10"]) == 0
    said = capsys.readouterr().out
    assert "10 silos of 300 images, ε = 10, δ = 1e-05" in said
    assert "noise multiplier σ   3.62" in said
    assert "steps                200" in said
    assert "one silo, 300 images, ε = 10: 0.24, hardly better than guessing; not private 0.74" in said
    assert "0.38  fedavg, poor" in said
    assert "Advice: do not train alone, from nothing" in said


def test_many_images_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--records", "6000", "--epsilon", "3", "--dp-sampling-rate", "1", "--dp-steps", "100"]
    assert main(["privacy-plan", *given]) == 0
    said = capsys.readouterr().out
    assert "noise multiplier σ   13.9" in said
    assert "one silo, 6,000 images, ε = 3: 0.60, good" in said
    assert "do not train alone" not in said
    assert "ten silos" not in said


def test_measured_point_promises_no_more_than_can_be_expected() -> None:
    assert nearest(ONE_SILO, 5_000, 10.0) == ((1_500, 10.0), 0.62)
    assert nearest(ONE_SILO, 6_000, 2.0) == ((6_000, 1.0), 0.47)
    assert nearest(ONE_SILO, 300, 0.1) == ((300, 1.0), 0.15), "the least that was measured"
    assert [quality_class(value) for value in (0.24, 0.43, 0.5, 0.62)] == [
        *("hardly better than guessing", "poor", "fair", "good")
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--records", "0", "--epsilon", "1"], "--records 0: must be a whole number >= 1"),
        (["--records", "300", "--epsilon", "0"], "dp-epsilon = 0.0: must be"),
        (["--records", "300", "--epsilon", "1", "--dp-delta", "0.01"], "must be <= 1 / records = 0.00333"),
        (["--records", "300", "--epsilon", "1", "--dp-sampling-rate", "2"], "dp-sampling-rate = 2"),
        (["--records", "300", "--epsilon", "1", "--record", "2"], "unknown option '--record'"),
    ],
)
def test_what_cannot_be_is_refused(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy-plan", *given]) == 2
    assert says in capsys.readouterr().err
