"""One private model of all silos: whole runs in this process, what they account for, and what is refused."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from flwr.app import Message
from interrupted_runs import killed_when_saving
from numpy.typing import NDArray
from one_silo import policy_file
from real_silos import keys_for_sums, real_settings, run_real, write_silos
from summed_rounds import LostError, begin, largest_difference

from clients import summed_gradients
from fedsynth.cli.deployment import silo_privacy
from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import GradientRequest, transport
from fedsynth.privacy.accounting import epsilon
from fedsynth.privacy.dp_training import SummedStep, mechanism_of, noised_whole_sum, summed_training_step
from fedsynth.privacy.spending import Spending, read_account
from fedsynth.privacy.summed_noise import SummedNoise
from strategies import build_strategy
from strategies.conversation.secure_sum import ATTEMPTS
from strategies.global_model import new_training

NAMES = ("east", "north", "south")
PRIVATE: dict[str, Scalar] = {
    "strategy": "dp-sum",
    "block_out_channels": "8",
    "dp_epsilon": 2.0,
    "dp_steps": 3,
    "dp_sampling_rate": 1.0,
    "dp_multiplicity": 1,
    "num_samples": 10,
}


class Silos:
    """Three real silos that answer gradients in sums and nothing else."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.folder = folder
        self.images = write_silos(folder / "images", dict.fromkeys(NAMES, (0, 1)))
        self.given = keys_for_sums(folder / "keys", NAMES)
        policy = {"answers": ("describe", "prepare", "gradient"), "least_colluders": 1, "count_noise": 1.0, **policy}
        self.policy = policy_file(folder / "policy", **policy)
        for config in self.given.values():
            config["policy-path"] = self.policy

    def run(self, **changes: Scalar) -> Any:
        settings = real_settings(self.folder, **{**PRIVATE, **changes})
        return run_real(settings, self.images, **self.given)

    def state(self, name: str) -> Path:
        return self.folder / "state" / "silos" / name

    def steps(self, name: str) -> list[Spending]:
        with (self.state(name) / "privacy.jsonl").open("rb") as file:
            report = read_account(file)
        assert report.problems == []
        return [spent for spent in report.spendings if spent.what == "summed step"]


def test_a_run_that_is_interrupted_accounts_for_every_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silos = Silos(tmp_path)
    with killed_when_saving(2):
        silos.run()
    config = RunConfig.from_run_config(real_settings(tmp_path, **PRIVATE))
    step = mechanism_of(config)
    assert [(spent.mechanism.noise_multiplier, spent.mechanism.steps) for spent in silos.steps("north")] == [
        (step.noise_multiplier, 1)
    ] * 2
    with mock.patch("strategies.results.publish.write_report"):
        folder = silos.run(resume=str(tmp_path / "runs" / "run"))
    # Round 2 is asked again, and answered with another sample and other noise.
    for name in NAMES:
        assert len(silos.steps(name)) == 4, name
    found = silos.steps("north")[0]
    assert found.public is not None
    assert found.public.noise_multiplier == pytest.approx(step.noise_multiplier * (3 / 2) ** 0.5)
    kinds = {json.loads(line)["message"] for line in (silos.state("north") / "audit.jsonl").read_text().splitlines()}
    assert kinds == {"query.describe", "query.prepare", "query.gradient", "query.reveal"}
    card = (folder.synthetic / "README.md").read_text()
    assert len(list(folder.synthetic.glob("*/*.png"))) == 10
    public, server = (float(value) for value in re.findall(r"with ε = ([\d.]+) towards", card)[:2])
    assert 1 < public < 1.9 < server <= 2.001
    options = argparse.Namespace(policy=Path(silos.policy), state_path=tmp_path / "state" / "silos", silo_name="north")
    assert silo_privacy.privacy(tmp_path, options) == 0
    said = re.search(r"ε +([\d.]+) at δ.*\n.*\n +([\d.]+) of it towards whoever sees only", capsys.readouterr().out)
    assert said is not None
    assert float(said[1]) > server, "four answers, and the counts"
    assert public < float(said[2]) < float(said[1])


def test_an_answer_that_a_crash_prevented_is_accounted_for(tmp_path: Path) -> None:
    silos = Silos(tmp_path)
    with (
        mock.patch.object(summed_gradients, "noised_whole_sum", side_effect=ZeroDivisionError),
        pytest.raises(RunError, match="no secure sum at round 1 in 3 attempts"),
    ):
        silos.run()
    assert len(silos.steps("north")) == ATTEMPTS


def test_who_drops_out_is_in_no_sum_and_those_who_are_left_hide_it_with_more_noise(tmp_path: Path) -> None:
    asked: list[tuple[int, NDArray[np.int64], SummedNoise]] = []
    at = 0

    def lose(kind: str, silo: int, question: Message) -> None:
        nonlocal at
        at = silo
        if kind == GradientRequest.kind and silo == 2:
            raise LostError

    def noted(unet: Any, recipe: Any, images: Any, labels: Any, step: SummedStep) -> NDArray[np.int64]:
        numbers = noised_whole_sum(unet, recipe, images, labels, step)
        asked.append((at, numbers, step.noise))
        return numbers

    settings = {**PRIVATE, "dp_epsilon": 10.0, "num_clients": 5, "num_rounds": "auto", "train_steps": 400}
    run, _ = begin(tmp_path, lose, **settings)
    oracle = new_training(run.task, "summed-training", 3)
    told = sum(member.num_examples for member in run.task.census if member.name != "silo-2")
    with mock.patch.object(summed_gradients, "noised_whole_sum", noted):
        arrays = run.arrays
        for number in (1, 2):
            arrays, metrics = run.strategy.run_round(number, arrays, run.exchange)
            answered = [answer for answer in asked if answer[2].silos == 6 - number]
            assert sorted(silo for silo, _, _ in answered) == [0, 1, 3, 4]
            assert metrics["silos"] == 4
            total = torch.from_numpy(np.sum([numbers for _, numbers, _ in answered], axis=0))
            summed_training_step(oracle, total, 1.0, answered[0][2].norm, told)
            assert largest_difference(transport.decode_tensors(arrays), dict(oracle.unet.state_dict())) == 0
    # Of five silos four open a sum, and three of them tell nobody their noise; of the four that are left three and two.
    before, after = asked[0][2], asked[-1][2]
    assert (before.honest, after.honest) == (3, 2)
    for noise in (before, after):
        assert noise.share**2 * noise.honest >= (noise.noise_multiplier * noise.norm) ** 2
    assert after.share / after.norm == pytest.approx(before.share / before.norm * (3 / 2) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"least_colluders": 2}, "line 'least-colluders = 2': the run's dp-colluders is 1"),
        ({"answers": ("describe", "prepare", "masked")}, "the run asks 'gradient'"),
        ({"privacy_epsilon": 1.0}, "line 'privacy-epsilon = .*': the run's dp-epsilon is 2"),
    ],
)
def test_a_policy_forbids_it_before_anything_is_asked(policy: dict[str, Any], said: str, tmp_path: Path) -> None:
    silos = Silos(tmp_path, **policy)
    with pytest.raises(RunError, match=said):
        silos.run()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dp-epsilon": "none", "dp-steps": "auto"}, "strategy = 'dp-sum' needs dp-epsilon"),
        ({"dp-colluders": 2, "num-clients": 4}, "dp-colluders = 2: must be 0 to 1 with 4 silos"),
        ({"num-clients": 2}, "num-clients = 2 .*must be >= 3"),
        ({"train-steps": 100}, "train-steps = 100"),
    ],
)
def test_what_cannot_be_summed_privately_is_refused(changes: dict[str, Scalar], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_strategy(RunConfig.from_run_config({"strategy": "dp-sum", "dp-epsilon": 10.0, "dp-steps": 3, **changes}))


def test_the_plain_command_takes_what_was_measured_best() -> None:
    """The best rows of docs/results/private.md: 240 steps, q = .1, rate 1e-2, for which ε = 10 takes σ = 1.05."""
    given: dict[str, Scalar] = {"strategy": "dp-sum", "dp-epsilon": 10.0}
    strategy, config = build_strategy(RunConfig.from_run_config(given))
    flat = config.to_run_config()
    assert (flat["dp-steps"], flat["dp-sampling-rate"], flat["learning-rate"]) == (240, 0.1, 1e-2)
    assert {"dp-steps", "dp-sampling-rate", "learning-rate"} <= set(config.resolved)
    assert strategy.num_rounds == config.own_steps == 240
    mechanism = mechanism_of(config)
    assert mechanism.noise_multiplier == pytest.approx(1.0523, abs=1e-3)
    assert epsilon([mechanism], 1e-5) == pytest.approx(10, rel=1e-3)
    assert mechanism == mechanism_of(RunConfig.from_run_config(given)), "before and after auto is filled in"
    chosen = build_strategy(RunConfig.from_run_config({**given, "dp-steps": 200, "dp-sampling-rate": 0.5}))[1]
    assert mechanism_of(chosen).steps == 200
    other = build_strategy(RunConfig.from_run_config({**given, "strategy": "dfd"}))[1].to_run_config()
    assert (other["dp-steps"], other["dp-sampling-rate"], other["learning-rate"]) == (200, 0.5, 1.5e-3)


def test_the_key_for_secure_sums_may_be_given(tmp_path: Path) -> None:
    given: dict[str, Scalar] = {"strategy": "dp-sum", "dp-epsilon": 10.0}
    assert RunConfig.from_run_config(given).secure_sums
    assert RunConfig.from_run_config({**given, "secure-aggregation": True}).secure_sums
