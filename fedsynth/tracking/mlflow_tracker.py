"""MLflow: a server of one's own, or a database beside the run folders."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsynth.config import Scalar
from fedsynth.tracking import PROJECT

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
DATABASE, ARTEFACTS = "mlflow.db", "mlartifacts"
"""Beside the run folders, where no server is named."""
_USUAL = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A server that has gone may hold up a run for a minute, not for a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_MOST_METRICS, _MOST_PARAMETERS = 1000, 100
"""What MLflow takes in one request."""

for _name, _value in _USUAL.items():  # before its import
    os.environ.setdefault(_name, _value)

from mlflow.entities import Metric, Param  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402


class MLflow:
    """Writes one run of an experiment. Arguments as of :func:`begin`."""

    def __init__(self, folder: Path, run_id: str) -> None:
        # The client, not mlflow.start_run, which notes this machine's user, paths and commit.
        uri, artefacts = os.environ.get(URI, ""), None
        if not uri:
            uri, artefacts = f"sqlite:///{folder.parent / DATABASE}", (folder.parent / ARTEFACTS).as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
        else:
            name = os.environ.get(EXPERIMENT, PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name, artefacts)
            run_id = str(self._client.create_run(experiment, run_name=folder.name).info.run_id)
        self.run_id = run_id

    def settings(self, values: Mapping[str, Scalar]) -> None:
        """Write parameters. MLflow never changes one: what a run continues with otherwise becomes a tag."""
        known = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)) for key, value in values.items() if key not in known]
        for start in range(0, len(new), _MOST_PARAMETERS):
            self._client.log_batch(self.run_id, params=new[start : start + _MOST_PARAMETERS])
        for key, value in values.items():
            if known.get(key, str(value)) != str(value):
                self._client.set_tag(self.run_id, key, str(value))

    def numbers(self, values: Mapping[str, float], server_round: int) -> None:
        """Write one metric each."""
        self._write([Metric(name, value, _now(), server_round) for name, value in values.items()])

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Write one metric a point."""
        self._write([Metric(name, value, _now(), step) for step, value in points])

    def picture(self, name: str, image: NDArray[np.uint8], server_round: int) -> None:
        """Write an image of a time series."""
        self._client.log_image(self.run_id, image, key=name, step=server_round)

    def results(self, values: Mapping[str, float]) -> None:
        """Write one metric each, at step 0."""
        self.numbers(values, 0)

    def file(self, path: Path) -> None:
        """Keep a copy among the run's artefacts."""
        self._client.log_artifact(self.run_id, str(path))

    def close(self, finished: bool) -> None:
        """Set the state of the run."""
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")

    def _write(self, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _MOST_METRICS])


def begin(folder: Path, run_id: str) -> MLflow:
    """As :func:`fedsynth.tracking.open_tracker`."""
    return MLflow(folder, run_id)


def _now() -> int:
    return int(1000 * time.time())
