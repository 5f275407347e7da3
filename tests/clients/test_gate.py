from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_silo import SPEC, Node, epsilon_request, policy_file, sample_request, settings_of

from clients.ledger import MOST_RUNS, Ledger
from fedsynth.diffusion import initial_unet
from fedsynth.errors import UserError
from fedsynth.messages import (
    AgreeRequest,
    DescribeRequest,
    MaskedTrainRequest,
    PrepareRequest,
    TrainRequest,
    UploadRequest,
    transport,
)
from fedsynth.policy import SiloPolicy
from fedsynth.privacy.spending import read_account
from fedsynth.spec import ImageSpec

Clinic = Callable[..., Node]


@pytest.fixture
def clinic(tmp_path: Path, image_folder: Path) -> Clinic:
    """A function that returns a real silo; arguments are lines of its policy, ``settings`` of the run."""

    def open_clinic(settings: dict[str, Any] | None = None, **lines: Any) -> Node:
        own = {
            "silo_name": "clinic",
            "state_path": str(tmp_path / "own"),
            "policy_path": policy_file(tmp_path, **lines),
        }
        return Node(settings_of(tmp_path, **(settings or {})), SPEC, data_path=str(image_folder), **own)

    return open_clinic


def train_request(node: Node, steps: int = 2, spec: ImageSpec = SPEC, server_round: int = 1) -> TrainRequest:
    weights = transport.encode_tensors(initial_unet(node.config, spec).state_dict())
    return TrainRequest(arrays=weights, spec=spec, server_round=server_round, steps=steps)


def masked_train_request(node: Node, steps: int) -> MaskedTrainRequest:
    weights = train_request(node).arrays
    return MaskedTrainRequest(
        arrays=weights,
        spec=SPEC,
        server_round=1,
        steps=steps,
        ranges=(1.0,) * len(weights),
        run_token="run",
        attempt="first",
        participants=("clinic", "east", "west"),
        keys=("0f" * 64,) * 3,
        weights=torch.full((3, 1), 1 / 3),
    )


def test_training_for_a_sum_has_its_own_word_and_the_ceilings_of_training(clinic: Clinic) -> None:
    strict = clinic(answers=("describe", "prepare", "masked", "train"))
    assert strict.refusal(masked_train_request(strict, 2)).endswith("'masked-train' is not answered here")
    node = clinic(answers=("describe", "prepare", "masked-train"), optimiser_steps_per_run=5)
    assert "no keys for secure sums" in node.refusal(masked_train_request(node, 2))
    refused = node.refusal(masked_train_request(node, 4))
    assert refused.endswith("line 'optimiser-steps-per-run = 5': 4 more asked for, 2 answered in this run")
    assert node.refusal(train_request(node)).endswith("'train' is not answered here")
    # Whoever answers one kind of sum finishes it, and a silo without any finishes none.
    finish = AgreeRequest(run_token="run", attempt="first", survivors=("clinic", "east", "west"))
    assert "no keys for secure sums" in node.refusal(finish)
    assert clinic(answers=("describe", "train")).refusal(finish).endswith("'masked' is not answered here")


def test_without_a_file_the_strict_default_acts_and_says_so_by_line(tmp_path: Path, image_folder: Path) -> None:
    node = Node(settings_of(tmp_path), SPEC, data_path=str(image_folder), silo_name="clinic")
    line = SiloPolicy().line("answers")
    assert node.refusal(UploadRequest(spec=SPEC)) == (
        f"clinic: PolicyError: silo-policy.toml, line '{line}': 'upload' is not answered here"
    )


def test_a_file_that_is_damaged_or_gone_refuses_everything(clinic: Clinic, tmp_path: Path) -> None:
    node = clinic()
    (tmp_path / "silo-policy.toml").write_text("answers = [")
    assert "not TOML" in node.refusal(DescribeRequest())
    (tmp_path / "silo-policy.toml").unlink()
    assert "No such file" in node.refusal(DescribeRequest())


def test_describe_tells_the_policy_and_what_is_left_of_it(clinic: Clinic) -> None:
    node = clinic(noise_queries_in_all=5, noise_queries_per_run=4, programs=("0" * 64,), strategies=("fedavg",))
    assert node.refusal(PrepareRequest(spec=SPEC)).endswith(
        """line 'strategies = ["fedavg"]': the run's strategy is 'dfd'"""
    )
    told = SiloPolicy.from_public(node.ask(DescribeRequest()).policy)
    assert (told.noise_queries_in_all, told.noise_queries_per_run, told.programs) == (5, 4, ())
    node = clinic(aggregators=("silos", "nodes"))
    assert node.refusal(PrepareRequest(spec=SPEC)).endswith(
        """line 'aggregators = ["silos", "nodes"]': the run has aggregators = 'server'"""
    )
    node = clinic(noise_queries_in_all=5)
    node.prepare()
    node.ask(epsilon_request())
    assert SiloPolicy.from_public(node.ask(DescribeRequest()).policy).noise_queries_in_all == 4


def test_ceilings_hold_per_run_and_in_all_across_runs_and_restarts(clinic: Clinic) -> None:
    node = clinic(noise_queries_per_run=2, noise_queries_in_all=3, samples_per_query=5)
    node.prepare()
    for _ in range(2):
        node.ask(epsilon_request())
    refused = node.refusal(epsilon_request())
    assert refused.endswith("line 'noise-queries-per-run = 2': 1 more asked for, 2 answered in this run")
    again = node.again()
    again.context.run_id = 2
    again.prepare()
    again.ask(epsilon_request())
    refused = again.refusal(epsilon_request())
    assert refused.endswith("line 'noise-queries-in-all = 3': 1 more asked for, 3 answered in all runs")
    six = epsilon_request(samples=torch.zeros((6, 1, 8, 8)), labels=torch.zeros(6, dtype=torch.int64))
    assert again.refusal(six).endswith("line 'samples-per-query = 5': 6 samples are asked about")


def test_a_question_that_fails_is_counted_all_the_same(clinic: Clinic) -> None:
    node = clinic(noise_queries_per_run=1)
    assert "has no trained model" in node.refusal(epsilon_request())
    assert "line 'noise-queries-per-run = 1'" in node.refusal(epsilon_request())


def test_training_of_an_own_model_is_counted_once_however_many_slices_it_takes(clinic: Clinic) -> None:
    node = clinic(optimiser_steps_per_run=5)
    for _ in range(4):
        node.prepare(1e-9)
    assert node.prepare().finished
    refused = node.refusal(train_request(node))
    assert refused.endswith("line 'optimiser-steps-per-run = 5': 2 more asked for, 4 answered in this run")


@pytest.mark.parametrize(
    ("lines", "settings", "said"),
    [
        ({"network_parameters": 1000}, {}, r"line 'network-parameters = 1000': the run's network has \d{4,}"),
        ({"disk_mb": 0}, {}, r"line 'disk-mb = 0': state folder '.*' holds 0 MB"),
        ({"privacy_epsilon": 8.0}, {}, "line 'privacy-epsilon = 8.0': the run trains without"),
        ({"optimiser_steps_per_run": 3}, {}, "'optimiser-steps-per-run = 3': 4 more asked for, 0 answered in this run"),
        ({"compute_seconds_per_run": 0}, {}, "line 'compute-seconds-per-run = 0': this run has had 0 s"),
        ({"compute_seconds_in_all": 0}, {}, "line 'compute-seconds-in-all = 0': all runs have had 0 s"),
        ({"largest_image_size": 7}, {}, "line 'largest-image-size = 7': images of 8 pixels are asked for"),
    ],
)
def test_training_beyond_the_policy_does_not_begin(
    clinic: Clinic, tmp_path: Path, lines: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    node = clinic(settings, **lines)
    if "compute_seconds_per_run" in lines:
        Ledger(tmp_path / "own" / "clinic" / "ledger.json").add(
            "1", {"compute-seconds": 0.1}, {"compute-seconds": (9, 9)}
        )
    with pytest.raises(AssertionError):
        node.prepare()
    refusal = node.refusal(PrepareRequest(spec=SPEC, train_seconds=9.0))
    assert re.search(said, refusal), refusal
    assert not (tmp_path / "own" / "clinic" / "models").exists()


@pytest.mark.parametrize("whose", ["per_run", "in_all"])
def test_a_message_ends_where_the_seconds_of_its_run_or_of_all_do(clinic: Clinic, tmp_path: Path, whose: str) -> None:
    node = clinic({"sampling_steps": 4, "train_steps": 9}, **{f"compute_seconds_{whose}": 100})
    node.prepare()
    ledger = Ledger(tmp_path / "own" / "clinic" / "ledger.json")
    earlier = ledger.counts("")[1]["compute-seconds"] if whose == "in_all" else 0
    ledger.add("2", {"compute-seconds": 100 - 1e-6 - earlier}, {"compute-seconds": (100, 9999)})
    node.context.run_id = 2
    name = f"compute-seconds-{whose.replace('_', '-')}"
    assert f"line '{name} = 100': this message takes longer than what was left" in node.refusal(train_request(node))
    assert name in node.refusal(sample_request(node, [0], [0])), "the seconds are counted"


def test_trouble_with_the_images_is_not_laid_to_the_state_folder(
    clinic: Clinic, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = clinic({"dataset": "imagefolder", "skip_bad_images": True, "train_steps": 9})
    (image_folder / "odd" / "scan-9.png").symlink_to(tmp_path / "gone.png")
    assert node.prepare().finished, "a link that leads nowhere is left out"

    def unlisted(*_: Any) -> None:
        raise UserError("the folder of images may not be read") from PermissionError(13, "Permission denied")

    monkeypatch.setattr("clients.context.list_images", unlisted)
    refused = clinic(least_training_images=2).refusal(PrepareRequest(spec=SPEC, train_seconds=9.0))
    assert refused == "clinic: UserError: the folder of images may not be read"


def spent(tmp_path: Path) -> list[tuple[str, str, str]]:
    with (tmp_path / "own" / "clinic" / "privacy.jsonl").open("rb") as file:
        report = read_account(file)
    return [(one.run, one.what, type(one.mechanism).__name__) for one in report.spendings]


def test_training_without_noise_is_accounted_for_once_a_run(clinic: Clinic, tmp_path: Path) -> None:
    node = clinic(count_noise=0.5)
    for _ in range(3):
        node.prepare(1e-9)
    node.ask(train_request(node))
    again = node.again()
    again.context.run_id = 2
    again.prepare()
    again.ask(epsilon_request())
    assert spent(tmp_path) == [
        ("1", "training", "NoneType"),
        ("1", "counts", "Geometric"),
        ("2", "training", "NoneType"),
    ]
    assert json.loads((tmp_path / "privacy-note-clinic.json").read_text())["entry"] == 3


def test_the_budget_that_is_left_is_told(clinic: Clinic, tmp_path: Path) -> None:
    node = clinic(count_noise=2.0, privacy_epsilon=2.5)
    assert SiloPolicy.from_public(node.ask(DescribeRequest()).policy).privacy_epsilon == 2.5
    node.ask(PrepareRequest(spec=SPEC))
    left = SiloPolicy.from_public(node.ask(DescribeRequest()).policy).limit("privacy_epsilon")
    assert left == pytest.approx(2.0, abs=1e-3)
    assert "line 'privacy-epsilon = 2.5'" in node.refusal(train_request(node))
    assert spent(tmp_path) == [("1", "counts", "Geometric")]
    (tmp_path / "own" / "clinic" / "privacy.jsonl").unlink()
    assert "it is not the one of which" in node.refusal(DescribeRequest())


PRIVATE: dict[str, Any] = {
    "train_steps": 400,
    "dp_epsilon": 8.0,
    "dp_steps": 3,
    "dp_multiplicity": 1,
    "dp_sampling_rate": 1.0,
}


def test_private_training_is_in_the_account_before_its_first_step(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = clinic(PRIVATE, count_noise=2.0, privacy_epsilon=12.0)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clients.models.local_model.train_privately", killed)
        node.refusal(PrepareRequest(spec=SPEC, train_seconds=9.0, private=True))
    training = ("1", "training", "Mechanism")
    assert spent(tmp_path) == [("1", "counts", "Geometric"), training], "counted, although no step was done"
    request = PrepareRequest(spec=SPEC, train_seconds=100.0, private=True)
    assert node.ask(request).finished
    again = node.again()
    again.context.run_id = 2
    assert again.ask(request).finished
    assert spent(tmp_path)[1:] == [training], "the same training, and the same model"
    refused = clinic({**PRIVATE, "seed": 1}, count_noise=2.0, privacy_epsilon=12.0).refusal(request)
    assert re.search(
        r"'privacy-epsilon = 12\.0': training would bring ε to 1\d.*; 8\.\d+ is spent, 3\.\d+ left", refused
    )
    assert len(spent(tmp_path)) == 2


def test_every_round_of_private_training_is_accounted_for(clinic: Clinic, tmp_path: Path) -> None:
    node = clinic({**PRIVATE, "strategy": "fedavg", "num_rounds": 3}, count_noise=2.0, privacy_epsilon=10.0)
    # The last round asked again is the same answer; another one is trained, and costs.
    for server_round in (1, 1, 2, 2):
        node.ask(train_request(node, steps=1, server_round=server_round))
    assert [what for _, what, _ in spent(tmp_path)].count("training") == 2
    assert "the run trains without" in clinic(privacy_epsilon=10.0).refusal(train_request(node))


def test_what_a_model_from_elsewhere_has_cost_is_not_known(clinic: Clinic, tmp_path: Path) -> None:
    node = clinic(privacy_epsilon=10.0)
    node.context.node_config["model-path"] = str(tmp_path / "brought")
    said = node.refusal(PrepareRequest(spec=SPEC))
    assert "'privacy-epsilon = 10.0': nobody here knows what the model of --model-path has cost" in said


def test_what_a_message_names_is_not_imported(clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\nsampler = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    node = clinic()
    node.prepare()
    refused = node.refusal(sample_request(node, [0], [0], sampler="planted_module:sampler"))
    assert refused.endswith("line 'plugins = []': sampler 'planted_module:sampler' would have to be imported")
    assert not (tmp_path / "imported").exists()


def test_a_class_that_few_hold_is_not_asked_about(clinic: Clinic) -> None:
    node = clinic(least_holders=3)
    node.prepare()
    node.ask(epsilon_request(holders=(3, 4)))
    line = "line 'least-holders = 3': of the holders of class index"
    assert node.refusal(epsilon_request(holders=(3, 2))).endswith(f"{line} 1 the server says 2")
    assert node.refusal(epsilon_request(holders=(3,))).endswith(f"{line} 1 the server says nothing")
    assert node.refusal(sample_request(node, [0], [0])).endswith(f"{line} 0 the server says nothing")


def test_a_set_too_large_to_draw_noise_for_is_refused(clinic: Clinic) -> None:
    node = clinic({"num_samples": 10**6}, images_drawn_in_all=1000)
    assert "line 'images-drawn-in-all = 1000': the run's set" in node.refusal(sample_request(node, [0], [0]))


def test_a_damaged_ledger_is_not_begun_anew(clinic: Clinic, tmp_path: Path) -> None:
    path = tmp_path / "own" / "clinic" / "ledger.json"
    node = clinic(noise_queries_in_all=1)
    node.prepare()
    node.ask(epsilon_request())
    whole = path.read_text()
    for content in ("", whole[:20], whole.replace('"noise-queries": 1', '"noise-queries": "a"'), "[]", '{"format": 2}'):
        path.write_text(content)
        # Which folder it is in, the server is not told.
        assert node.refusal(epsilon_request()).startswith("clinic: UserError: '…/ledger.json' ")
        assert path.read_text() == content
    path.write_text(whole)
    assert "line 'noise-queries-in-all = 1'" in node.refusal(epsilon_request())


def test_the_ledger_forgets_early_runs_but_not_what_they_add_up_to(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json")
    content = {"format": 1, "in-all": {"noise-queries": 5000}, "runs": {str(k): {} for k in range(MOST_RUNS)}}
    ledger.path.write_text(json.dumps(content))
    assert ledger.add("new", {"noise-queries": 1}, {"noise-queries": (5, 5001)}) is None
    assert ledger.add("new", {"noise-queries": 1}, {"noise-queries": (5, 5001)}) == "noise-queries"
    runs = json.loads(ledger.path.read_text())["runs"]
    assert (len(runs), "0" in runs, "new" in runs) == (MOST_RUNS, False, True)
    assert ledger.counts("new") == ({"noise-queries": 1}, {"noise-queries": 5001})
    ledger.path.write_text('{"format": 1, "in-all": {"noise-queries": -5}, "runs": {}}')
    with pytest.raises(UserError, match="is damaged"):
        ledger.counts("new")
