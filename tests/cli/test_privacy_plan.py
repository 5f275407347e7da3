"""``fedsynth privacy-plan``: the noise, what was measured, and the advice."""

from __future__ import annotations

import re
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import dp_event, pld

from fedsynth.cli import main
from fedsynth.privacy.accounting import Mechanism, epsilon, noise_multiplier_for
from fedsynth.privacy.expectations import DIGITS, ONE_SILO, TWO_CLASSES, nearest, quality_class
from fedsynth.units import rounded_up


def test_few_images_are_advised_against(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy-plan", "--records", "300", "--silos", "10", "--epsilon", "10"]) == 0
    said = capsys.readouterr().out
    assert "10 silos of 300 images, ε = 10, δ = 1e-05" in said
    assert "noise multiplier σ   3.62" in said
    assert "steps                200" in said
    assert "one silo, 300 images, ε = 10: 0.24, hardly better than guessing; not private 0.74" in said
    assert "0.38  fedavg, poor" in said
    assert "0.68  dp-sum (with the noise that a trusted party would add), good" in said
    assert "Advice: do not train alone, from nothing" in said
    assert "strategy = 'dp-sum'" in said
    # dp-sum has steps of its own: σ = 1.05, ten of six honest shares of it on ten times the images.
    summed = said.split("In dp-sum")[1]
    assert "noise multiplier σ   1.05" in summed
    assert "steps                240" in summed
    mine, together = 3.6198 / (0.5 * 300 * 200**0.5), 1.0523 * (10 / 6) ** 0.5 / (0.1 * 3000 * 240**0.5)
    assert f"noise                {together:.2g}, {mine / together:.1f} times less" in summed


def test_dp_sum_is_said_with_both_its_guarantees(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--records", "300", "--silos", "10", "--epsilon", "10", "--dp-sampling-rate", "1", "--dp-steps", "1"]
    assert main(["privacy-plan", *given, "--dp-colluders", "2"]) == 0
    said = capsys.readouterr().out
    # 7 of 10 silos are in a sum, 5 of them tell nobody: ten shares are √2 times σ, on ten times the images.
    sigma = noise_multiplier_for(10, 1e-5, 1.0, 1)
    assert f"noise                {sigma / 300:.2g}: " in said
    assert f"noise                {sigma * 2**0.5 / 3000:.2g}, 7.1 times less than in a silo's own model" in said
    public = epsilon([Mechanism(sigma * (7 / 5) ** 0.5)], 1e-5)
    guaranteed = f"10 towards a server that 2 silos may help, {rounded_up(public)} towards all others"
    assert guaranteed in " ".join(said.split())
    assert main(["privacy-plan", *given, "--dp-colluders", "4"]) == 2
    assert "dp-colluders = 4: must be 0 to 3 with 10 silos" in capsys.readouterr().err
    assert main(["privacy-plan", *given[:2], "--epsilon", "10", *given[-4:]]) == 0
    said = capsys.readouterr().out
    assert "each adds a share" not in said
    assert "3 silos, from which on one model of all" in said


def test_epsilon_follows_from_the_noise(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--records", "300", "--dp-sampling-rate", "0.2", "--dp-steps", "50"]
    assert main(["privacy-plan", *given, "--noise-multiplier", "1.3"]) == 0
    said = capsys.readouterr().out
    event = dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(0.2, dp_event.GaussianDpEvent(1.3)), 50)
    neighbours = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    oracle = pld.PLDAccountant(neighbours).compose(event).get_epsilon(1e-5)
    found = re.search(r"1 silo of 300 images, ε = ([\d.]+), δ = 1e-05", said)
    assert found is not None
    assert float(found[1]) == pytest.approx(oracle, abs=2e-3)
    assert "noise multiplier σ   1.30" in said
    assert main(["privacy-plan", *given, "--epsilon", found[1]]) == 0
    assert "noise multiplier σ   1.30" in capsys.readouterr().out
    assert main(["privacy-plan", *given, "--silos", "3", "--noise-multiplier", "1.3"]) == 0
    assert f"{found[1]} towards a server that 1 silo may help" in capsys.readouterr().out


def test_what_was_measured_and_the_advice_agree(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure of the program's own tables stands on their page, and the advice names the best of each."""
    page = page_text("results/private.md")
    for epsilon_, by_way in DIGITS.items():
        said = page if epsilon_ == 10 else page.split("## At ε = 3 and 1")[1]
        for way, accuracy in by_way.items():
            row = re.escape(f"`{way.split(',')[0]}`") + r"[^|]*\| " + f"{epsilon_:g}[^|]*" + r"\| " + points(accuracy)
            same = re.escape(f"`{way.split(',')[0]}`") + r"[^|]*\| the same \| " + points(accuracy)
            assert re.search(f"{row}|{same}", said), (epsilon_, way)
    for way, accuracy in TWO_CLASSES.items():
        assert f"| `{way}`, our settings | {points(accuracy)} |" in page
    assert all(max(by_way, key=by_way.__getitem__) == "dp-sum" for by_way in DIGITS.values())
    assert max(TWO_CLASSES, key=TWO_CLASSES.__getitem__) == "dfd"
    for images in ("144", "1500"):
        quick = ["--dp-sampling-rate", "1", "--dp-steps", "1"]
        assert main(["privacy-plan", "--records", images, "--silos", "10", "--epsilon", "5", *quick]) == 0
        said = capsys.readouterr().out
        assert "all classes at each, ε = 3,\nthree seeds" in said
        assert "0.64  dp-sum\n    0.41  dfd\n" in said
        assert "(strategy = 'dp-sum'; silos need keys), which was best at every point" in said
        assert "where each has two classes,\nthe silos' own models (dfd) were better" in said


def points(accuracy: float) -> str:
    return f"{accuracy:.2f}".removeprefix("0")


def page_text(name: str) -> str:
    return (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")


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
        (["--records", "300", "--epsilon", "1", "--dp-colluders", "1"], "acts in dp-sum, which needs 3 to "),
        (["--records", "300", "--noise-multiplier", "0.3"], "--noise-multiplier 0.3: must be >= 0.4"),
        (["--records", "300", "--noise-multiplier", "1e9"], "--noise-multiplier 1e+09: noise multiplier 1000000000.0"),
        (["--records", "300", "--noise-multiplier", "0.5"], "0.5, 200 steps, sampling rate 0.5: dp-epsilon = "),
        (["--records", "300", "--epsilon", "1", "--record", "2"], "unknown option '--record'"),
    ],
)
def test_what_cannot_be_is_refused(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy-plan", *given]) == 2
    assert says in capsys.readouterr().err
