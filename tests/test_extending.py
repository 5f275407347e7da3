"""The guide to extending, whose code is run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from flwr.app import ArrayRecord
from hand_made_models import play
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.cli.tables.run_groups import config_hash
from fedsynth.config import AUTO, RECIPES, Recipe, RunConfig
from fedsynth.data import load_dataset
from fedsynth.diffusion import make_scheduler, noise_schedule, sample
from fedsynth.errors import RunError, UserError
from fedsynth.messages import transport
from fedsynth.output import default_name
from strategies import build_strategy, strategy_class
from strategies.averaging.base import AveragingStrategy
from strategies.averaging.robust import FedMedian
from strategies.averaging.updates import Update

GUIDE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", GUIDE, re.DOTALL))
STRATEGY, DATASET, SAMPLER = "clipped_mean:ClippedMean", "stripes:load", "half_noise:scheduler"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The guide's files, importable as a user's would be."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, code in BLOCKS.items():
        (folder / f"{name}.py").write_text(code)
    (folder / "wrong.py").write_text("import math\n\n\ndef load(root, image_size):\n    return 3\n")
    monkeypatch.syspath_prepend(folder)
    yield
    for name in (*BLOCKS, "wrong", "trimmed"):
        sys.modules.pop(name, None)


def test_every_example_is_short_and_in_the_command_of_the_guide() -> None:
    assert set(BLOCKS) == {"clipped_mean", "stripes", "half_noise"}
    assert all(len(code.splitlines()) < 40 for code in BLOCKS.values())
    assert f"--strategy {STRATEGY} --dataset {DATASET} --sampler {SAMPLER}" in GUIDE


def test_a_run_of_one_s_own_strategy_dataset_and_sampler(tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path, strategy=STRATEGY, dataset=DATASET, sampler=SAMPLER, image_size=8, dfd_rounds=AUTO
    )
    folder = run_tiny(settings)
    assert len(images_of(folder)) == 30
    classes = json.loads(folder.partition.read_text())["classes"]
    assert classes == ["upright", "level", "slanted"]
    assert "changes were cut to their median length" in folder.report.read_text()
    losses = [row["loss"] for row in folder.read_metrics()]
    assert len(losses) == 2
    again = run_tiny({**settings, "run-name": "again"}, report=False)
    assert images_of(again) == images_of(folder)


def test_one_s_own_sampler_composes_the_answers_of_silos(tmp_path: Path) -> None:
    folder = run_tiny(tiny_settings(tmp_path, strategy="dfd", sampler=SAMPLER), report=False)
    assert folder.read_config().to_run_config()["weights"] == "constant"
    assert len(images_of(folder)) == 30


def test_silos_sample_their_models_with_it(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, strategy="pooled", sampler=SAMPLER)
    assert images_of(run_tiny(settings, report=False)) != images_of(
        run_tiny({**settings, "sampler": "ddpm", "run-name": "ddpm"}, report=False)
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_half_of_the_noise_gives_the_right_spread(recipe: Recipe) -> None:
    alphas = DDPMScheduler(**noise_schedule(recipe)).alphas_cumprod.double()

    def exact(x: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        alpha = alphas[t].float()
        return (x - alpha.sqrt() * 0.3) * (1 - alpha).sqrt() / (alpha * 0.04 + 1 - alpha)

    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    made = make_scheduler(recipe, 1000, SAMPLER)  # with fewer levels the spread is that of their distance
    drawn = sample(exact, made, noise, torch.zeros(0, dtype=torch.long), torch.Generator().manual_seed(1))
    assert drawn.mean() == pytest.approx(0.3, abs=0.01)
    assert drawn.std() == pytest.approx(0.2, abs=0.01)


def test_changes_are_cut_to_their_median_length() -> None:
    strategy = strategy_class(STRATEGY)()
    assert isinstance(strategy, AveragingStrategy)
    strategy._arrays = transport.encode_tensors({"w": torch.tensor([1.0, 1.0])})
    moves = [[0.0, 2.0], [3.0, 0.0], [0.0, -400.0]]

    def update(place: int, move: list[float]) -> Update:
        record = transport.encode_tensors({"w": torch.tensor([1.0, 1.0]) + torch.tensor(move)})
        return Update(place, (place, str(place)), record, 10, None, 1.0)

    combined = strategy.combine(1, [update(place, move) for place, move in enumerate(moves)])
    assert isinstance(combined, ArrayRecord)
    # The median length is 3: the moves become (0, 2), (3, 0) and (0, -3).
    np.testing.assert_allclose(transport.decode(combined["w"]), [1 + 3 / 3, 1 - 1 / 3], rtol=1e-6)


def test_stripes_are_what_their_names_say() -> None:
    train, test = load_dataset(DATASET)
    assert (train.images.shape, test.images.shape) == ((600, 16, 16, 1), (150, 16, 16, 1))
    for image, label in zip(train.images[:30, ..., 0].astype(float), train.labels, strict=False):
        constant = [np.ptp(image, axis=0).max(), np.ptp(image, axis=1).max()]
        assert [spread == 0 for spread in constant] == {0: [True, False], 1: [False, True], 2: [False, False]}[label]


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("strategy", "clipped_maen:ClippedMean", "cannot import 'clipped_maen' (No module named 'clipped_maen')"),
        ("strategy", "clipped_mean:ClipedMean", "has no 'ClipedMean': did you mean 'ClippedMean'?"),
        ("strategy", "stripes:load", "must be a class derived from fedsynth.strategies.SynthesisStrategy"),
        ("strategy", "clipped_mean:AveragingStrategy", "needs 'how', half a sentence that says what the silos did"),
        ("sampler", "half_nose:scheduler", "PYTHONPATH"),
        ("strategy", "clipped mean:ClippedMean", "unknown strategy 'clipped mean:ClippedMean' (known: "),
        ("strategy", "fedavgg", "unknown strategy 'fedavgg': did you mean 'fedavg'?"),
        ("sampler", "ddmp", "unknown sampler 'ddmp': did you mean 'ddpm'?"),
    ],
)
def test_what_is_not_there_is_said_before_a_silo_works(key: str, name: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        build_strategy(RunConfig.from_run_config({"strategy": "fedavg", key: name}))
    assert said in str(error.value)


def test_a_plug_in_takes_the_keys_of_its_settings_alone(tmp_path: Path) -> None:
    code = """
from fedsynth.config.methods import TrimmedSettings, inherited
from strategies.averaging.robust import FedTrimmedAvg

class Mild(TrimmedSettings):
    beta: float = inherited(TrimmedSettings, "beta", 0.1)

class Trimmed(FedTrimmedAvg):
    Settings = Mild

class Unknown(TrimmedSettings):
    strength: float = 1.0

class Strong(FedTrimmedAvg):
    Settings = Unknown
"""
    (tmp_path / "mine" / "trimmed.py").write_text(code)
    strategy, config = build_strategy(RunConfig.from_run_config({"strategy": "trimmed:Trimmed"}))
    assert strategy.settings.model_dump()["beta"] == config.to_run_config()["beta"] == 0.1
    with pytest.raises(UserError, match=r"eta = 0\.1: strategy = 'trimmed:Trimmed' does not take it; leave it out"):
        build_strategy(RunConfig.from_run_config({"strategy": "trimmed:Trimmed", "eta": 0.1}))
    with pytest.raises(UserError, match=r"beta = 0\.5: must be a number >= 0 and < 0\.5"):
        strategy_class("trimmed:Trimmed")(beta=0.5)
    with pytest.raises(UserError, match="its Settings hold 'strength', which is no configuration key"):
        strategy_class("trimmed:Strong")


@pytest.mark.parametrize("name", ["wrong:load", "stripes:lod", "nowhere:load"])
def test_a_dataset_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"dataset = '{name}': "):
        load_dataset(name)


def test_names_of_folders_have_no_colon_and_one_s_own_data_is_known_by_its_root() -> None:
    assert default_name(STRATEGY, DATASET, 3, datetime(2026, 1, 2)) == (
        "20260102-000000-clipped_mean.ClippedMean-stripes.load-3"
    )
    hashes = [
        config_hash(RunConfig.from_run_config({"dataset": DATASET, "data-root": root})) for root in ("/a", "/b", "/a")
    ]
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("returned", [{}, ArrayRecord(), None], ids=["dict", "layers missing", "nothing"])
def test_what_combine_must_return_is_said(returned: Any) -> None:
    class Wrong(FedMedian):
        def combine(self, server_round: int, updates: Any) -> Any:
            return returned

    weights = {"weight": torch.ones(3)}
    with pytest.raises(RunError, match=r"Wrong\.combine: must return an ArrayRecord with all layers of self\.sent"):
        play(Wrong(), 1, weights, [weights, weights], [1, 1])
