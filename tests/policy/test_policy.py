from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, blocks_of

from fedsynth.config import RunConfig
from fedsynth.config.keys import kebab
from fedsynth.errors import UserError
from fedsynth.policy import POLICY_FILE, PolicyError, SiloPolicy, document, plan_of, read_policy, refusals
from fedsynth.spec import ImageSpec


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / POLICY_FILE


def test_the_file_that_is_written_holds_every_line_with_what_it_gives_away_and_reads_back(file: Path) -> None:
    for policy in (SiloPolicy(), SiloPolicy.unlimited(), SiloPolicy(contact='Änne "the" admin', count_noise=2.5)):
        file.write_text(document(policy), encoding="utf-8")
        assert read_policy(file) == policy
        assert tomllib.loads(file.read_text()).keys() == {kebab(name) for name in SiloPolicy.model_fields}
    assert max(len(line) for line in document(SiloPolicy()).splitlines()) <= 120


def test_the_default_answers_no_sums_over_real_images_and_has_ceilings() -> None:
    strict = SiloPolicy()
    assert not {"train", "masked-train", "upload", "statistics", "evaluate"} & set(strict.answers)
    assert strict.count_noise > 0
    assert not strict.tell_train_loss
    assert all(strict.limit(name) < 1e9 for name in ("noise_queries_per_run", "noise_queries_in_all", "disk_mb"))
    assert SiloPolicy.unlimited().limit("noise_queries_in_all") == float("inf")


def test_lines_that_are_left_out_are_the_default_s(file: Path) -> None:
    # As Windows' editor saves it, and as PowerShell writes it.
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes("noise-queries-per-run = 10\n".encode(encoding))
        assert read_policy(file) == SiloPolicy(noise_queries_per_run=10)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("answers = ['trian', 'describe']", "unknown answers 'trian': did you mean 'train'?"),
        ("answers = ['train']", "answers: must hold 'describe'"),
        ("answers = []", 'answers = ["describe"] refuses all else'),
        ("answers = 'train'", "answers = 'train': must be a list of 'describe', 'prepare'"),
        ("noise-queries-per-run = -1", "noise-queries-per-run = -1: must be 'unlimited' or a whole number >= 0"),
        ("noise-queries-per-run = true", "must be 'unlimited' or a whole number >= 0"),
        ("noise-querys-per-run = 1", "unknown setting 'noise-querys-per-run': did you mean 'noise-queries-per-run'?"),
        ("strategies = ['fedavk']", "unknown strategies 'fedavk': did you mean 'fedavg'?"),
        ("programs = ['ab']", "programs = 'ab': must be a list of the 64 digits that 'fedsynth silo program' prints"),
        ("plugins = ['os.system']", "must be a list of module:name of a plug-in"),
        ("statistics-delta = 1.0", "statistics-delta = 1.0: must be a number > 0 and < 1"),
        ("least-images = 1", "least-images = 1: must be a whole number >= 2"),
        ("evaluation-epsilon = nan", "evaluation-epsilon = nan: must be finite"),
        ("answers = [", "not TOML"),
        (f"plugins = {['module:name'] * 2000}", "its lists are too long: "),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_what_is_allowed(file: Path, lines: str, said: str) -> None:
    file.write_text(lines)
    with pytest.raises(UserError) as error:
        read_policy(file)
    assert str(error.value).startswith(f"policy '{file}': ")
    assert said in str(error.value)


def test_a_missing_file_is_no_policy(file: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; 'fedsynth silo init' writes one"):
        read_policy(file)


def test_a_refusal_names_the_line_as_it_stands() -> None:
    with pytest.raises(PolicyError) as error:
        SiloPolicy(samples_per_query=7).refuse("samples_per_query", "8 samples are asked about")
    assert error.value.line == "samples-per-query = 7"
    assert str(error.value) == "silo-policy.toml, line 'samples-per-query = 7': 8 samples are asked about"


def test_the_server_is_told_all_but_the_programs() -> None:
    policy = SiloPolicy(programs=("0" * 64,), noise_queries_per_run=3, answers=("describe", "epsilon"))
    told = json.dumps(policy.public())
    assert "0" * 64 not in told
    assert SiloPolicy.from_public(told) == policy.model_copy(update={"programs": ()})


@pytest.mark.parametrize(
    "told", ["[]", "{", "{}}", '{"answers": 3}', '{"answers": []}', '{"x": 1}', "[" * 9000, "1e999"]
)
def test_what_a_silo_tells_of_its_policy_is_checked(told: Any) -> None:
    with pytest.raises(UserError):
        SiloPolicy.from_public(told)


def test_a_run_that_acts_on_losses_is_refused_where_they_are_not_told() -> None:
    spec = ImageSpec(1, 8, ("a", "b"))
    for strategy, needed in (("fedddpm-plus", True), ("fedddpm", False), ("fedavg", False)):
        plan = plan_of(RunConfig.from_run_config({"strategy": strategy}), spec)
        lines = [refusal.line for refusal in refusals(SiloPolicy(), plan)]
        assert ("tell-train-loss = false" in lines) is needed
        assert not refusals(SiloPolicy.unlimited(), plan)


def test_all_weights_count_also_those_beside_adapters() -> None:
    spec, policy = ImageSpec(1, 8, ("a", "b")), SiloPolicy.unlimited().model_copy(update={"network_parameters": 999})
    whole, adapted = (plan_of(RunConfig(), spec, 1000, adapter_parameters=number) for number in (0, 7))
    said = "line 'network-parameters = 999': the run asks up to 1000 network parameters"
    assert list(map(str, refusals(policy, whole))) == [said]
    beside = ", which all count for memory and time although it trains 7 in adapters beside them"
    assert list(map(str, refusals(policy, adapted))) == [said + beside]


def test_private_rounds_are_on_all_images_however_few_steps_they_have() -> None:
    strict, spec = SiloPolicy(answers=("describe", "prepare", "train")), ImageSpec(1, 8, ("a", "b"))

    def lines(**given: Any) -> list[str]:
        config = RunConfig.from_run_config({"strategy": "fedavg", **{kebab(key): given[key] for key in given}})
        return [refusal.line for refusal in refusals(strict, plan_of(config, spec))]

    assert lines(train_steps=20) == ["least-training-images = 50"], "32 images in a round"
    assert lines(dp_epsilon=1.0, dp_steps=20) == []


def test_what_is_summed_in_secret_is_asked_by_another_word() -> None:
    spec = ImageSpec(1, 8, ("a", "b"))
    for strategy, single, summed in (("fedavg", "train", "masked-train"), ("dfd", "epsilon", "masked")):
        for secure, word, other in ((False, single, summed), (True, summed, single)):
            answers = plan_of(
                RunConfig.from_run_config({"strategy": strategy, "secure-aggregation": secure}), spec
            ).answers
            assert word in answers
            assert other not in answers


def test_questions_are_cut_by_what_networks_see() -> None:
    spec = ImageSpec(3, 64, ("a", "b"))
    config = RunConfig.from_run_config({"strategy": "dfd", "num-samples": 256, "screening": False, "max-message-mb": 2})
    pixels, latents = plan_of(config, spec), plan_of(config, spec, sample_shape=(32, 8, 8))
    # 2 MB are 40 images of 49 kB, or 243 samples of 8 kB.
    assert (pixels.samples_per_query, latents.samples_per_query) == (40, 243)


def test_policies_on_the_pages_can_be_read(tmp_path: Path) -> None:
    found = [
        block.text
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "toml" and "answers = " in block.text
    ]
    assert len(found) >= 3
    file = tmp_path / "silo-policy.toml"
    for text in found:
        file.write_text(text.replace("<64 digits>", "0" * 64), encoding="utf-8")
        assert set(tomllib.loads(file.read_text())) <= {kebab(name) for name in SiloPolicy.model_fields}
        read_policy(file)
