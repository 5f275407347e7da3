"""What is derived from the declarations of the keys."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from fedsynth.config import KEYS, SETTINGS, Recipe, RunConfig
from fedsynth.config.documents import own_defaults, reference_page, with_block
from fedsynth.config.keys import facts_of, in_words
from fedsynth.config.types import A_FOLDER, A_NUMBER

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_block_and_the_page_are_written_from_the_declarations() -> None:
    assert with_block(PYPROJECT) == PYPROJECT, "run 'make config'"
    assert (ROOT / "docs" / "configuration.md").read_text() == reference_page(), "run 'make config'"
    block = tomllib.loads(PYPROJECT)["tool"]["flwr"]["app"]["config"]
    flat = RunConfig().to_run_config()
    assert [(key, value, type(value)) for key, value in block.items()] == [
        (key, value, type(value)) for key, value in flat.items()
    ]


def test_conditions_name_keys_and_values_that_there_are() -> None:
    for name, key in KEYS.items():
        assert key.meaning
        for other, wanted in key.acts_with.items():
            assert other != name
            for value in wanted:
                said = value if value == A_NUMBER else in_words(value)
                folder = KEYS[other].facts.path and value in ("", A_FOLDER)
                assert folder or said in KEYS[other].allowed


def test_a_key_of_several_strategies_differs_in_its_default_only() -> None:
    declared: dict[str, tuple[object, ...]] = {}
    for settings in SETTINGS.values():
        for name, info in settings.model_fields.items():
            said = (info.annotation, tuple(map(repr, info.metadata)), info.description, facts_of(info))
            assert declared.setdefault(name, said) == said
    assert own_defaults(KEYS["sample-from"])["centralised"] == "ema"
    assert own_defaults(KEYS["sample-from"])["krum"] == "raw"


def test_keys_of_the_recipe_name_what_auto_is_in_each() -> None:
    assert own_defaults(KEYS["prediction"]) == {"default": "x0", "paper": "epsilon", "fine-tune": "epsilon"}
    assert own_defaults(KEYS["dp-steps"]) == {"default": 200, "dp-sum": 240}
    assert own_defaults(KEYS["learning-rate"])["dp-sum"] == 1e-2
    assert own_defaults(KEYS["codec"]) == {"default": "auto", "paper": "pixels", "fine-tune": "autoencoder"}
    page = reference_page()
    for row in (
        "| `prediction` | 'auto', 'epsilon', 'v' or 'x0' | `auto`: `\"x0\"`, `\"epsilon\"` (paper, fine-tune) |",
        "| `beta-end` | 'auto' or a number > 0 and < 1 | `auto`: `0.02`, `0.012` (fine-tune) | last beta; acts with"
        " schedule=linear or scaled-linear |",
        "| `dp-steps` | 'auto' or a whole number >= 1 | `auto`: `200`, `240` (dp-sum) |",
        "| `snr-gamma` | 'auto' or a number > 0 | `auto`: `5.0` | γ of min-snr; acts with loss-weighting=min-snr |",
    ):
        assert row in page
    of_recipe = {name for name, key in KEYS.items() if key.section == "recipe_keys"}
    assert of_recipe == {name.replace("_", "-") for name in Recipe.model_fields}
    assert all(KEYS[name].default == "auto" and KEYS[name].group == "The training recipe" for name in of_recipe)


DECLARED = '    proximal_mu: NonNegative = key(0.01, "μ, pull of local training towards the global weights")\n'
NEW = """\
    proximal_decay: BelowOne = key(0.5, "how fast the pull fades", affects="execution", commands=("draw",))
"""
FOLLOWS = """
import argparse
import tomllib
from pathlib import Path

import fedsynth
from fedsynth.cli.options import add_keys
from fedsynth.config import KEYS, RunConfig, keys_of
from fedsynth.config.__main__ import write
from fedsynth.errors import UserError

root = Path.cwd()
assert Path(fedsynth.__file__).is_relative_to(root)
write(root)
assert tomllib.loads((root / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]["proximal-decay"] == "auto"
row = "| `proximal-decay` | 'auto' or a number >= 0 and < 1 | `auto`: `0.5` | how fast the pull fades | may change |"
assert row in (root / "docs" / "configuration.md").read_text()
assert KEYS["proximal-decay"].may_change
assert "proximal-decay" in keys_of("draw") - keys_of("evaluate")
assert RunConfig.from_run_config({"strategy": "fedprox"}).settings.proximal_decay == 0.5
for given in ({"strategy": "fedprox", "proximal-decay": 1.0}, {"strategy": "fedavg", "proximal-decay": 0.1}):
    try:
        RunConfig.from_run_config(given)
    except UserError as error:
        print(error)
parser = argparse.ArgumentParser()
parser.set_defaults(words=["--strategy", "fedprox"])
add_keys(parser, "[SETTING.toml]")
parser.print_help()
"""


def test_a_new_key_touches_one_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fedsynth", tmp_path / "fedsynth", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "docs").mkdir()
    methods = tmp_path / "fedsynth" / "config" / "methods.py"
    before = methods.read_text()
    assert before.count(DECLARED) == 1
    methods.write_text(before.replace(DECLARED, DECLARED + NEW))
    (tmp_path / "follows.py").write_text(FOLLOWS)
    done = subprocess.run([sys.executable, "follows.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "proximal-decay = 1.0: must be 'auto' or a number >= 0 and < 1 " in said
    assert "proximal-decay = 0.1: acts with strategy = 'fedprox' only; leave it out or set strategy = " in said
    first = said[said.index("strategy fedprox:") : said.index("What is run")]
    assert (
        "--proximal-decay VALUE how fast the pull fades; 'auto' or a number >= 0 and < 1 (default: auto, here 0.5)"
        in first
    )
