from __future__ import annotations

from fedsynth.config import RunConfig, command_of, published_settings


def config(**given: object) -> RunConfig:
    parsed = RunConfig.from_run_config({key.replace("_", "-"): value for key, value in given.items()})  # type: ignore[misc]
    return parsed.resolve({"prediction": "x0", "schedule": "cosine", "loss-weighting": "min-snr"})


def test_settings_that_act_are_published_resolved_and_without_paths() -> None:
    run = config(strategy="fedavg", dataset="mnist", data_root="/home/alice/data", num_rounds=4)
    found = published_settings(run, {"image-size": 32, "model": "digits", "num-rounds": 7})
    acting = {"strategy": "fedavg", "num-rounds": 4, "image-size": 32, "model": "digits", "data-root": "data"}
    assert {key: found[key] for key in acting} == acting
    assert "auto" not in found.values()
    # Another strategy's, another schedule's, a real federation's, and where this machine has its files.
    assert not {"prior", "beta-start", "class-names", "output-dir", "state-dir", "device", "dp-clip"} & found.keys()


def test_the_command_names_what_somebody_chose() -> None:
    run = config(strategy="fedavg", dataset="mnist", data_root="/home/alice/my data", seed=3, evaluate=False)
    command = "fedsynth run --strategy=fedavg --seed=3 --dataset=mnist '--data-root=my data' --evaluate=false"
    assert command_of(run) == command
    assert command_of(config(dataset="silos")) == (
        "fedsynth run --superlink LINK --strategy=dfd --seed=0 --dataset=silos"
    )
