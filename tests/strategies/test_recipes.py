"""Every strategy with every recipe and codec: whole runs of few steps, and some of them interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from acting_settings import acting
from interrupted_runs import CORRECTED, SMALL, THREE, Settings, assert_killed_and_resumed_equals_whole
from tiny_runs import images_of, run_tiny, tiny_settings

from fedsynth.diffusion import ClassConditionalDDPMPipeline
from fedsynth.output import read_dataset
from strategies import STRATEGIES

RECIPES: dict[str, Settings] = {"default": {}, "paper": {"recipe": "paper"}, "v": {"prediction": "v"}}
TOGETHER = {"default": "unshuffle-2", "paper": "pixels", "v": "unshuffle-2"}
"""The codec that each recipe is tried with; tests/long has all pairs."""
OPTIONS: dict[str, Settings] = {
    "bulyan": THREE,
    "fedddpm": CORRECTED,
    "fedddpm-plus": CORRECTED,
    "krum": THREE,
    "multikrum": THREE,
}
FEW: Settings = {**SMALL, "dfd_rounds": 2, "num_rounds": 2, "train_steps": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize(("recipe", "codec"), TOGETHER.items())
# The steps of dp-sum are dear; ddsa trains its diffusion model as fedavg does.
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("dp-sum", "ddsa")])
def test_every_strategy_runs_with_every_recipe_and_codec(strategy: str, recipe: str, codec: str, base: Path) -> None:
    name = f"{strategy}-{recipe}-{codec}"
    own = {**OPTIONS.get(strategy, {}), **RECIPES[recipe], "strategy": strategy, "codec": codec, "run_name": name}
    folder = run_tiny(tiny_settings(base, **acting(FEW, own)), report=False)
    sets = [path for path in folder.synthetic.iterdir() if path.is_dir()] if strategy == "local" else [folder.synthetic]
    for path in sets:
        assert read_dataset(path).images.shape == (10, 8, 8, 1)
    if (model := folder.models / "global").exists():
        pipeline = ClassConditionalDDPMPipeline.from_pretrained(model)
        sides = {"pixels": (1, 8), "unshuffle-2": (4, 4)}
        assert (pipeline.unet.config.in_channels, pipeline.unet.config.sample_size) == sides[codec]
        assert pipeline([3], num_inference_steps=2).images[0].size == (8, 8)


@pytest.mark.parametrize(
    ("name", "recipe", "codec"),
    [
        ("fedavg, ema", "v", "unshuffle-2"),
        ("fedddpm", "default", "unshuffle-2"),
        ("dfd", "v", "pixels"),
        ("centralised", "paper", "unshuffle-2"),
    ],
)
def test_a_run_killed_in_its_last_rounds_and_resumed_equals_the_run_in_one_go(
    name: str, recipe: str, codec: str, base: Path
) -> None:
    changes = {**RECIPES[recipe], "codec": codec, "run_name": f"{name}, killed"}
    assert_killed_and_resumed_equals_whole(name, base, **changes)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("strategy", ["dfd", "fedavg", "centralised"])
def test_same_seed_gives_the_same_images_of_models_trained_again(strategy: str, recipe: str, tmp_path: Path) -> None:
    own = {**RECIPES[recipe], "strategy": strategy, "codec": "unshuffle-2"}
    runs = [run_tiny(tiny_settings(tmp_path / word, **acting(FEW, own)), report=False) for word in ("one", "other")]
    assert images_of(runs[0]) == images_of(runs[1])
