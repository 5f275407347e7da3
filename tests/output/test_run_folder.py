from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fedsynth.config import RECIPES, Recipe, RunConfig, Scalar
from fedsynth.config.keys import kebab
from fedsynth.errors import UserError
from fedsynth.output import RunFolder


def test_create_makes_an_empty_writable_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "first")
    assert run.path == tmp_path / "runs" / "first"
    assert list(run.path.iterdir()) == []
    assert run.report == run.path / "report.html"


def test_an_empty_folder_may_be_taken_but_no_full_one(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    run = RunFolder.create(tmp_path, "first")
    run.write_config({"seed": 1})
    with pytest.raises(UserError, match="exists and is not empty"):
        RunFolder.create(tmp_path, "first")
    assert json.loads(run.config.read_text())["seed"] == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new folders to root too")
def test_an_unwritable_root_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot write '/proc/runs/first'"):
        RunFolder.create(Path("/proc/runs"), "first")


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="plain folder name"):
        RunFolder.create(tmp_path, name)


def test_metrics_grow_by_one_line_a_round(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    assert run.read_metrics() == []
    for number in (1, 2, 3):
        run.append_metrics({"round": number, "note": "line\nbreak"})
        assert len(run.metrics.read_text().splitlines()) == number
    assert [row["round"] for row in RunFolder(run.path).read_metrics()] == [1, 2, 3]


def test_a_torn_last_line_is_forgotten_and_overwritten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.append_metrics({"round": 1})
    run.append_metrics({"round": 2})
    with run.metrics.open("a") as file:
        file.write('{"round": 3}')
    assert [row["round"] for row in run.read_metrics()] == [1, 2]
    run.append_metrics({"round": 3, "loss": 0.5})
    assert run.read_metrics() == [{"round": 1}, {"round": 2}, {"round": 3, "loss": 0.5}]


@pytest.mark.parametrize("line", [b"\0\0\0", b"[1, 2]"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.metrics.write_bytes(b'{"round": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl' is damaged: remove line 2"):
        run.read_metrics()


def test_rows_after_a_round_are_dropped(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    for number in (1, 2, 3):
        run.append_metrics({"round": number, "loss": 1 / number})
    with run.metrics.open("a") as file:
        file.write('{"round": 4, "lo')
    run.keep_metrics(2)
    assert [json.loads(line)["round"] for line in run.metrics.read_text().splitlines()] == [1, 2]
    assert run.read_metrics() == [{"round": 1, "loss": 1.0}, {"round": 2, "loss": 0.5}]
    run.append_metrics({"round": 3})
    assert [row["round"] for row in run.read_metrics()] == [1, 2, 3]
    run.keep_metrics(0)
    assert run.read_metrics() == []


def test_only_what_was_not_finished_is_removed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    whole = ["config.json", "synthetic/0/00000.png", "checkpoints/last.pt", "mine.part", ".hidden"]
    torn = [".config.json.1f.part", "checkpoints/.last.pt.2e.part", ".synthetic.3d.part/0/00000.png"]
    for name in [*whole, *torn]:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)
    run.remove_torn_files()
    assert sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()) == sorted(whole)
    run.remove_torn_files()


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"'{tmp_path}/nothing' is no run folder \(it holds no config.json\)"):
        RunFolder.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    RunFolder(tmp_path).write_config({})
    assert RunFolder.open(tmp_path).path == tmp_path


CONFIG = RunConfig.from_run_config({"strategy": "fedavg", "num-rounds": 4, "seed": 3})


def known(tmp_path: Path, config: RunConfig = CONFIG) -> RunFolder:
    run = RunFolder(tmp_path)
    run.write_config({"config": config.to_run_config(), "resolved": ["sampler", "beta"]})
    return run


def test_configuration_is_read_with_what_had_been_resolved(tmp_path: Path) -> None:
    config = known(tmp_path).read_config()
    assert config.to_run_config() == CONFIG.to_run_config()
    assert config.resolved == ("sampler", "beta")


def test_configuration_is_for_everybody_and_paths_are_for_this_machine(tmp_path: Path) -> None:
    given: dict[str, Scalar] = {"dataset": "mnist", "data-root": "/home/alice/mnist", "image-size": "auto"}
    config, run = RunConfig.from_run_config(given | {"output-dir": str(tmp_path)}), RunFolder(tmp_path)
    run.record_config(config, {"image-size": 32, "model": "digits", "seed": 7})
    flat = json.loads(run.config.read_text())["config"]
    assert (flat["image-size"], flat["model"], flat["data-root"], flat["seed"]) == (32, "digits", "mnist", 0)
    assert "alice" not in run.config.read_text()
    assert run.read_config().to_run_config() == config.to_run_config()
    run.machine.unlink()
    assert run.read_config().data.data_root == "mnist"


def test_configuration_of_an_earlier_version_is_read_where_it_says_what_is_still_done(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    former: dict[str, Scalar] = {"corrector-steps": 0, "min-gain": "auto", "slice-seconds": 2.0, "temperature": 3.0}
    former["min-statistics-samples"] = 80
    content = {"config": {**CONFIG.to_run_config(), **former}, "resolved": ["beta", "corrector-steps"]}
    run.write_config(content)
    config = run.read_config()
    assert (config.to_run_config(), config.resolved) == (CONFIG.to_run_config(), ("beta",))
    run.write_config({**content, "config": {**CONFIG.to_run_config(), "corrector-steps": 1}})
    with pytest.raises(UserError, match="corrector-steps = 1: this version of fedsynth works with 0 only"):
        run.read_config()


FORMER_RECIPE: dict[str, Scalar] = {
    **{"num-train-timesteps": 1000, "beta-start": 1e-4, "beta-end": 0.02, "learning-rate": 1e-3, "ema-decay": 0.995}
}
"""What runs said of their training before there were recipes."""


@pytest.mark.parametrize("strategy", ["fedavg", "dfd"])
def test_a_run_from_before_there_were_recipes_had_the_papers(strategy: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    flat = RunConfig.from_run_config({"strategy": strategy, "seed": 3}).to_run_config()
    of_recipes = {"recipe"} | {kebab(name) for name in Recipe.model_fields}
    former = {key: value for key, value in flat.items() if key not in of_recipes} | FORMER_RECIPE
    run.write_config({"config": former, "resolved": []})
    config = run.read_config()
    assert config.recipe == RECIPES["paper"].model_copy(update={"learning_rate": 1e-3})
    assert config.run.seed == 3
    run.refuse_changes({"recipe": "paper", "seed": 3})
    with pytest.raises(UserError, match="recipe = "):
        run.refuse_changes({"recipe": "default"})
    run.write_config(
        {"config": {**former, "dfd-preset": "paper", "num-train-timesteps": 500, "beta-end": 0.04}, "resolved": []}
    )
    assert run.read_config().recipe.num_train_timesteps == 500


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"config": {"seed": 1}, "resol', "Unterminated"),
        (b"\xff\xfe", "decode"),
        (b"[]", "no JSON object but a list"),
        (b'{"config": {"seed": 1}}', "resolved"),
        (b'{"config": [], "resolved": []}', "items"),
        (b'{"config": {"sede": 1}, "resolved": []}', "unknown config key 'sede'"),
    ],
)
def test_damaged_configuration_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.config.write_bytes(content)
    with pytest.raises(UserError, match=rf"config.json' is damaged: restore it, or start another run \(.*{why}"):
        run.read_config()
    assert run.config.read_bytes() == content


def test_equal_configurations_and_free_keys_pass(tmp_path: Path) -> None:
    run = known(tmp_path)
    run.refuse_changes(CONFIG.to_run_config())
    run.refuse_changes({"num-rounds": 8, "train-steps": 1800, "device": "cpu", "evaluate": False, "node-timeout": 1.0})


@pytest.mark.parametrize(
    ("key", "value", "had"),
    [
        ("strategy", "fedmedian", "fedavg"),
        ("seed", 1, 3),
    ],
)
def test_other_keys_are_refused(key: str, value: Scalar, had: Scalar, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{key} = {value!r}: the run to resume has {had!r}; give the same"):
        known(tmp_path).refuse_changes({key: value})


def test_free_keys_can_be_fixed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train-steps = 1800: the run to resume has 400"):
        known(tmp_path).refuse_changes({"train-steps": 1800}, fixed=("num-rounds", "train-steps"))


def test_the_log_is_copied_while_the_block_runs(tmp_path: Path) -> None:
    run, logger = RunFolder.create(tmp_path, "a"), logging.getLogger("fedsynth.test_run_folder")
    logger.setLevel(logging.INFO)

    def work(message: str) -> None:
        with run.log_to_file(logger):
            logger.info("%s é", message)
            raise ZeroDivisionError

    for message in ("first", "resumed"):
        with pytest.raises(ZeroDivisionError):
            work(message)
        logger.info("outside")
    lines = run.log.read_text(encoding="utf-8").splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == ["first é", "resumed é"]
    assert logger.handlers == []


def test_numbers_that_are_none_come_back_as_none_and_are_not_written(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.metrics.write_text('{"round": 1, "loss": NaN, "seconds": 1e999}\n{"round": 2, "loss": -Infinity}\n')
    run.keep_metrics(1)
    assert run.metrics.read_text().startswith('{"round": 1, "loss": null, "seconds": null, "integrity": ')
    assert run.read_metrics() == [{"round": 1, "loss": None, "seconds": None}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.append_metrics({"round": 2, "loss": float("nan")})
    assert len(run.read_metrics()) == 1


def test_what_grows_during_a_run_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    run, logger = RunFolder.create(tmp_path, "a"), logging.getLogger("fedsynth.test_run_folder")
    logger.setLevel(logging.INFO)
    with run.log_to_file(logger):
        logger.info("run folder %s", run.path)
        try:
            (tmp_path / "absent").read_text()
        except OSError:
            logger.exception("of north: cannot read '%s'", tmp_path / "absent")
    run.write_status(
        {"error": f"cannot write '{run.path}/results.json'", "silos": {"north": {"left-out": str(tmp_path)}}}
    )
    run.append_metrics({"round": 1, "attendance": {"north": {"left-out": f"state folder '{tmp_path}': full"}}})
    run.write_results({"rounds": 1, "why": [f"see {run.log}"]})
    for path in sorted(run.path.iterdir()):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
    assert "run folder a\n" in run.log.read_text(encoding="utf-8")
    assert run.read_status()["error"] == "cannot write 'results.json'"
