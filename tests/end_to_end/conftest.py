"""A real Flower installation for one test session: its own FLWR_HOME, its own copy of the app, its own ports."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed import LIMIT_SECONDS

from fedsynth.cli.deployment import machine
from fedsynth.cli.deployment.app import staged_app
from fedsynth.cli.deployment.flower import flower_environment, prepare_home, stop_superlinks

TINY = {
    "train-steps": 12,
    "screening": "false",
    "block-out-channels": '"8,8"',
    "layers-per-block": 1,
    "classifiers": '"logistic-regression,cnn"',
    "classifier-seeds": 1,
    "num-clients": 3,
    "partition": '"iid"',
    "samples-per-client": 60,
    "num-samples": 40,
    "dfd-rounds": 4,
    "sampling-steps": 4,
}

HOSTILE = {
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "RAY_ADDRESS": "203.0.113.7:6379",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
}
"""An environment in which neither Flower nor Ray works by itself; a temporary folder with a long path comes on top."""

FlowerRun = Callable[..., Path]

ROOT = Path(__file__).parents[2]

BLOCKER = f"""
import sys

if not any(word.startswith("fedsynth.cli") for word in sys.orig_argv):
    sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
"""


@pytest.fixture(scope="session")
def flower_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the session's Flower state, models and runs."""
    return tmp_path_factory.mktemp("flower")


@pytest.fixture(scope="session")
def blocker(flower_base: Path) -> Path:
    """``PYTHONPATH`` under which only the command imports the checkout: Flower's processes need a bundle of the app."""
    folder = flower_base / "blocker"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return folder


@pytest.fixture(scope="session")
def bundle_environment(flower_base: Path, blocker: Path) -> Iterator[dict[str, str]]:
    """Environment in which this project cannot be imported from the checkout: only the bundle can provide it.

    It is made from a hostile one, as machines of batch systems have them.
    """
    home = flower_base / "home"
    prepare_home(home)
    long = flower_base / "a-temporary-folder-of-a-batch-system-with-a-long-path"
    long.mkdir()
    with tempfile.TemporaryDirectory(prefix="fs", dir="/tmp", ignore_cleanup_errors=True) as short:
        with pytest.MonkeyPatch.context() as hostile:
            hostile.setattr(machine, "_SHORT_ROOTS", (short,))
            for name in ("no_proxy", "NO_PROXY", "RAY_TMPDIR"):
                hostile.delenv(name, raising=False)
            for name, value in {**HOSTILE, "TMPDIR": str(long)}.items():
                hostile.setenv(name, value)
            environment = flower_environment()
        yield {
            **environment,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PYTHONPATH": str(blocker),
        }


@pytest.fixture(scope="session")
def flower_run(flower_base: Path, bundle_environment: dict[str, str]) -> Iterator[FlowerRun]:
    """A function that runs ``flwr run`` on an app folder, outside the checkout, and returns the run folder."""

    def run(app: Path, name: str, **changes: object) -> Path:
        base = {"output-dir": f'"{flower_base}/runs"', "state-dir": f'"{flower_base}/state"', "run-name": f'"{name}"'}
        config = {**TINY, **base, **changes}
        federation = f"num-supernodes={config['num-clients']} client-resources-num-cpus=1 client-resources-num-gpus=0.0"
        pairs = " ".join(f"{key}={value}" for key, value in config.items())
        flwr = str(Path(sys.executable).with_name("flwr"))
        command = [flwr, "run", str(app), "local", "--stream", "--federation-config", federation, "--run-config", pairs]
        done = subprocess.run(
            command,
            env=bundle_environment,
            cwd=flower_base,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        folder = flower_base / "runs" / name
        assert (folder / "results.json").is_file(), done.stdout[-5000:] + done.stderr[-3000:]
        return folder

    try:
        yield run
    finally:
        stop_superlinks(flower_base / "home")


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app as ``fedsynth run`` stages it."""
    return staged_app(tmp_path_factory.mktemp("app"))
