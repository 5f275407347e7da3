"""One silo behind the real ClientApp, asked message by message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec

# Flower sets these when it starts an app; a message cannot be built without them.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

SPEC = ImageSpec(1, 8, ("even", "odd"))
_node_ids = iter(range(1000, 10000))


def settings_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run config of a tiny network; changes in snake case."""
    return {
        **RunConfig().to_run_config(),
        "block-out-channels": "8,8",
        "device": "cpu",
        "num-clients": 3,
        "num-samples": 20,
        "partition": "iid",
        "samples-per-client": 40,
        "sampling-steps": 3,
        "state-dir": str(folder / "state"),
        "train-steps": 4,
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }


class Node:
    """One SuperNode: keeps its context between messages, under a node id of its own."""

    def __init__(self, settings: dict[str, Any], spec: ImageSpec, **node_config: Any) -> None:
        self.spec, self.config = spec, RunConfig.from_run_config(settings)
        given = {key.replace("_", "-"): value for key, value in node_config.items()}
        self.context = Context(1, next(_node_ids), given, RecordDict(), settings)

    def ask(
        self, kind: str, arrays: ArrayRecord | None = None, weights: ArrayRecord | None = None, **config: Any
    ) -> Message:
        """Send a message, its config in snake case, and return the answer."""
        content = {**wire.spec_to_config(self.spec), **{key.replace("_", "-"): v for key, v in config.items()}}
        request = wire.request(self.context.node_id, kind, content, arrays)
        if weights is not None:
            request.content[wire.WEIGHTS] = weights
        return app(request, self.context)

    def metrics(self, kind: str, arrays: ArrayRecord | None = None, **config: Any) -> dict[str, Any]:
        """Metrics of an answer that is no error."""
        answer = self.ask(kind, arrays, **config)
        assert not answer.has_error(), answer.error.reason
        return dict(answer.content.metric_records[wire.METRICS])

    def tensors(
        self, kind: str, arrays: ArrayRecord | None = None, weights: ArrayRecord | None = None, **config: Any
    ) -> dict[str, torch.Tensor]:
        """Record ``arrays`` of an answer that is no error."""
        answer = self.ask(kind, arrays, weights, **config)
        assert not answer.has_error(), answer.error.reason
        return wire.decode_tensors(wire.array_record(answer, wire.ARRAYS))

    def again(self, **changes: Any) -> Node:
        """The same silo after a restart: another node id, an empty context."""
        settings = {**self.context.run_config, **{key.replace("_", "-"): value for key, value in changes.items()}}
        return Node(settings, self.spec, **self.context.node_config)


def simulated(folder: Path, partition: int = 1, **changes: Any) -> Node:
    """A silo that holds a partition of the digits."""
    settings = settings_of(folder, **changes)
    return Node(settings, load_federation(RunConfig.from_run_config(settings)).spec, partition_id=partition)
