"""Whole runs against silos with policies: what they are asked is what was planned, and what is forbidden is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from one_silo import policy_file
from real_silos import CLASSES, real_settings, run_real, write_silos

import strategies.app
from fedsynth.config import RunConfig, Scalar
from fedsynth.diffusion import count_parameters
from fedsynth.errors import RunError
from fedsynth.mixture.screening import LEVELS
from fedsynth.policy import Plan, plan_of
from fedsynth.policy.plan import CALIBRATION_QUERIES, CALIBRATION_SAMPLES
from fedsynth.spec import ImageSpec
from strategies.cooperation import calibration

SPEC = ImageSpec(1, 8, ("0", "1", "2", "3"))


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_silos(tmp_path_factory.mktemp("images"))


def counted(settings: dict[str, Scalar], name: str) -> dict[str, float]:
    """What a silo's ledger holds of its only run, without the seconds."""
    path = Path(str(settings["state-dir"])) / "silos" / name / "ledger.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else {}
    (counts,) = runs.values() or [{}]
    return {what: value for what, value in counts.items() if what != "compute-seconds"}


def planned(settings: dict[str, Scalar], name: str) -> Plan:
    config = RunConfig.from_run_config(settings)
    held = sum(row % 4 in CLASSES[name] for row in range(config.sampling.num_samples))
    return plan_of(config, SPEC, count_parameters(config, SPEC), held)


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({"strategy": "dfd"}, True),
        ({"strategy": "dfd", "max_message_mb": 0.001}, True),
        ({"strategy": "dfd", "parallel_levels": 2}, False),  # it may need fewer rounds
        ({"strategy": "local"}, True),
        ({"strategy": "pooled"}, False),  # who draws what of a class that several hold is drawn
        ({"strategy": "fedavg"}, True),
        ({"strategy": "feddiffuse"}, False),
        ({"strategy": "fedddpm", "aux_samples": 8, "server_steps": 1, "local_steps": 3}, True),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_silos_are_asked_what_was_planned(
    silos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], exact: bool
) -> None:
    monkeypatch.setattr("strategies.results.publish.write_report", lambda *_, **__: None, raising=False)
    settings = real_settings(tmp_path, num_clients=3, num_samples=32, **changes)
    run_real(settings, silos)
    for name in silos:
        plan, counts = planned(settings, name), counted(settings, name)
        asked = [counts.get(what, 0) for what in ("noise-queries", "images-drawn", "optimiser-steps")]
        most = [plan.noise_queries, plan.images_drawn, plan.optimiser_steps]
        assert all(one <= other for one, other in zip(asked, most, strict=True)), (name, asked, most)
        if exact:
            assert asked == most, name


def test_the_plan_counts_the_questions_of_the_calibration() -> None:
    assert (len(LEVELS), calibration.SAMPLES_PER_CLASS) == (CALIBRATION_QUERIES, CALIBRATION_SAMPLES)
    config = RunConfig.from_run_config({"dataset": "silos", "num-samples": 8})
    assert plan_of(config, SPEC, num_samples=8).noise_queries == config.settings.model_dump()["dfd_rounds"] + 4
    assert plan_of(config, SPEC, num_samples=8).samples_per_query == 8 * 4


def test_a_run_that_a_policy_forbids_ends_before_anyone_trains(silos: dict[str, Path], tmp_path: Path) -> None:
    settings = real_settings(tmp_path, num_clients=3, strategy="fedavg")
    answers = ("describe", "prepare", "epsilon")
    own = policy_file(tmp_path, answers=answers, noise_queries_per_run=10, contact="data office,\n room 7")
    with pytest.raises(RunError) as error:
        run_real(settings, silos, south={"policy-path": own})
    line = 'answers = ["describe", "prepare", "epsilon"]'
    assert f"south: line '{line}': the run asks 'train' (contact: data office,\\n room 7)" in str(error.value)
    assert "north" not in str(error.value)
    assert all(counted(settings, name) == {} for name in silos)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_every_line_that_forbids_is_named_at_once(silos: dict[str, Path], tmp_path: Path) -> None:
    settings = real_settings(tmp_path, num_clients=3, strategy="dfd", num_samples=32)
    lines: dict[str, Any] = {
        "strategies": ("fedavg",),
        "aggregators": ("silos", "nodes"),
        "noise_queries_per_run": 3,
        "samples_per_query": 5,
        "optimiser_steps_per_run": 5,
        "largest_image_size": 4,
        "network_parameters": 10,
        "privacy_epsilon": 3.0,
    }
    with pytest.raises(RunError) as error:
        run_real(settings, silos, east={"policy-path": policy_file(tmp_path, **lines)})
    for name in set(lines) - {"noise_queries_per_run", "samples_per_query"}:
        assert f"line '{name.replace('_', '-')} = " in str(error.value)
    assert str(error.value).count("east: ") == 1
    spent = policy_file(tmp_path / "spent", noise_queries_in_all=3)
    with pytest.raises(
        RunError, match="in-all = 3': the run asks up to 4 noise queries, and the line says what is left"
    ):
        run_real(real_settings(tmp_path / "c", num_clients=3, num_samples=32), silos, east={"policy-path": spent})
    # What depends on the classes a silo holds is known once it has said so.
    few = policy_file(tmp_path, samples_per_query=15)
    with pytest.raises(RunError, match="east: line 'samples-per-query = 15': the run asks up to 16 samples per query"):
        run_real(real_settings(tmp_path / "b", num_clients=3, num_samples=32), silos, east={"policy-path": few})


def test_a_silo_that_refuses_in_the_middle_is_left_out_by_its_line_and_the_run_goes_on(
    silos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A server that does not look at policies.
    monkeypatch.setattr(strategies.app, "check_policies", lambda *_: None)
    settings = real_settings(tmp_path, num_clients=3, strategy="dfd", num_samples=32)
    run = run_real(settings, silos, south={"policy-path": policy_file(tmp_path, noise_queries_in_all=2)})
    assert len(list(run.synthetic.glob("*/*.png"))) == 32
    assert counted(settings, "south")["noise-queries"] == 2
    assert counted(settings, "north")["noise-queries"] == 4
    said = "line 'noise-queries-in-all = 2': 1 more asked for, 2 answered in all runs"
    assert f"left out: south: PolicyError: silo-policy.toml, {said}" in caplog.text


def test_a_class_that_too_few_hold_is_not_asked_of_a_silo_that_minds(
    silos: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # North and south hold 0, 1 and 2, east 2 and 3.
    settings = real_settings(tmp_path, num_clients=3, strategy="dfd", num_samples=32)
    own = policy_file(tmp_path / "north", least_holders=3)
    run = run_real(settings, silos, north={"policy-path": own})
    assert len(list(run.synthetic.glob("*/*.png"))) == 32
    assert "north is not asked about it: north: line 'least-holders = 3': class '0' has 2 holders" in caplog.text
    assert "left out" not in caplog.text
    audited = counted(settings, "north")
    assert audited["noise-queries"] == 4
    east = policy_file(tmp_path / "east", least_holders=2)
    with pytest.raises(RunError, match="east: line 'least-holders = 2': class '3' has 1 holders: have more silos"):
        run_real(real_settings(tmp_path / "b", num_clients=3), silos, east={"policy-path": east})


def test_what_the_run_can_do_without_is_left_out_with_a_word(
    silos: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = real_settings(tmp_path, num_clients=3, strategy="pooled", num_samples=32, evaluate_silos=True)
    some = policy_file(tmp_path / "south", answers=("describe", "prepare", "sample", "evaluate"))
    run_real(settings, silos, south={"policy-path": some})
    assert "south will not measure the result: line 'answers = " in caplog.text
    assert "the run asks 'statistics'" in caplog.text
    answered = [json.loads(line) for line in (tmp_path / "state/silos/south/audit.jsonl").read_text().splitlines()]
    assert {"query.statistics", "evaluate"} & {entry["message"] for entry in answered} == {"evaluate"}
    assert {entry["outcome"] for entry in answered if entry["message"] != "evaluate"} == {"answered"}


def test_a_silo_of_too_few_images_is_named_before_anyone_trains(silos: dict[str, Path], tmp_path: Path) -> None:
    # North and south train on 32 or 33 of 36 images, east on 21 or 22 of 24.
    own = policy_file(tmp_path, least_training_images=30)
    with pytest.raises(RunError) as error:
        run_real(
            real_settings(tmp_path, num_clients=3),
            silos,
            **{name: {"policy-path": own} for name in silos},
        )
    why = "line 'least-training-images = 30': the silo has fewer images to train on"
    assert f"policies forbid this run: east: {why}. " in str(error.value)
    assert not list(tmp_path.rglob("*.safetensors"))
