"""Every strategy with every prediction and codec: the combinations that the short table leaves out."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from acting_settings import acting
from interrupted_runs import CORRECTED, SMALL, THREE, Settings
from tiny_autoencoders import kl_of
from tiny_runs import run_tiny, tiny_settings

from fedsynth.output import read_dataset
from strategies import STRATEGIES

PREDICTIONS = ("x0", "v", "epsilon")
CODECS = ("pixels", "unshuffle-2", "unshuffle-4", "autoencoder")
OPTIONS: dict[str, Settings] = {
    **dict.fromkeys(("krum", "multikrum", "bulyan"), THREE),
    **dict.fromkeys(("fedddpm", "fedddpm-plus"), CORRECTED),
    "dp-sum": {"dp_epsilon": 50.0, "dp_steps": 2, "dp_sampling_rate": 0.2, "dp_multiplicity": 1, "num_clients": 3},
}
FEW: Settings = {**SMALL, "dfd_rounds": 2, "num_rounds": 2, "train_steps": 3}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_with_every_prediction_and_codec(strategy: str, tmp_path: Path) -> None:
    kl_of(0).save_pretrained(tmp_path / "autoencoder")
    for prediction, codec in product(PREDICTIONS, CODECS):
        own: Settings = {"strategy": strategy, "prediction": prediction, "codec": codec}
        if codec == "autoencoder":
            own["autoencoder"] = str(tmp_path / "autoencoder")
        name = f"{strategy}-{prediction}-{codec}"
        changes = {**OPTIONS.get(strategy, {}), **own, "run_name": name}
        folder = run_tiny(tiny_settings(tmp_path, **acting(FEW, changes)), report=False)
        sets = (
            [one for one in folder.synthetic.iterdir() if one.is_dir()] if strategy == "local" else [folder.synthetic]
        )
        for path in sets:
            assert read_dataset(path).images.shape == (10, 8, 8, 1), name
