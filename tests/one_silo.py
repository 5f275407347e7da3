"""One silo behind the real ClientApp, asked message by message."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from fedsynth.config import RunConfig
from fedsynth.data import load_federation
from fedsynth.diffusion import draw_initial_noise, make_scheduler, sample, to_uint8
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.evaluation import DomainClassifier
from fedsynth.evaluation.silo_measures import hash_weights
from fedsynth.messages import (
    Answer,
    EpsilonRequest,
    EvaluateRequest,
    PrepareAnswer,
    PrepareRequest,
    Request,
    SampleRequest,
    transport,
)
from fedsynth.policy import POLICY_FILE, SiloPolicy, document
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

# Flower sets these when it starts an app; a message cannot be built without them.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

A = TypeVar("A", bound=Answer)

SPEC = ImageSpec(1, 8, ("even", "odd"))
_node_ids = iter(range(1000, 10000))
_state = TemporaryDirectory(prefix="state-")


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


def context_of(settings: dict[str, Any] | None = None, **node_config: Any) -> Context:
    """What a SuperNode gives its app, under a node id of its own: images stay in memory by that."""
    given = {key.replace("_", "-"): value for key, value in node_config.items()}
    if "data-path" in given:
        given.setdefault("state-path", (settings or {}).get("state-dir", _state.name))
    run_config = {**RunConfig().to_run_config(), **(settings or {})}
    return Context(1, next(_node_ids), given, RecordDict(), run_config)


def policy_file(folder: Path, **changes: Any) -> str:
    """Write a policy that allows everything but for the changes, fields of a SiloPolicy; return its path."""
    path = folder / POLICY_FILE
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(document(SiloPolicy.unlimited().model_copy(update=changes)), encoding="utf-8")
    return str(path)


class Node:
    """One SuperNode: keeps its context between messages, under a node id of its own."""

    def __init__(self, settings: dict[str, Any], spec: ImageSpec, **node_config: Any) -> None:
        self.spec, self.config = spec, RunConfig.from_run_config(settings)
        self.context = context_of(settings, **node_config)

    def send(self, request: Request[Any]) -> Message:
        """Send a request, and return the message that comes back."""
        return app(request.to_message(self.context.node_id), self.context)

    def ask(self, request: Request[A]) -> A:
        """Send a request, and return its answer, which is no error."""
        message = self.send(request)
        assert not message.has_error(), message.error.reason
        return request.reader()(message)

    def refusal(self, request: Request[Any]) -> str:
        """Send a request that is answered with an error, and return its reason."""
        message = self.send(request)
        assert message.has_error()
        return str(message.error.reason)

    def prepare(self, seconds: float = 100.0) -> PrepareAnswer:
        """Train the silo's own model, or find it on its disk."""
        return self.ask(PrepareRequest(spec=self.spec, train_seconds=seconds))

    def again(self, **changes: Any) -> Node:
        """The same silo after a restart: another node id, an empty context."""
        settings = {**self.context.run_config, **{key.replace("_", "-"): value for key, value in changes.items()}}
        return Node(settings, self.spec, **self.context.node_config)

    @property
    def own_model(self) -> Path:
        """Folder of the silo's own model."""
        return Path(str(self.context.state.config_records["local-model"]["path"]))


def simulated(folder: Path, partition: int = 1, **changes: Any) -> Node:
    """A silo that holds a partition of the digits."""
    settings = settings_of(folder, **changes)
    return Node(settings, load_federation(RunConfig.from_run_config(settings)).spec, partition_id=partition)


def noisy_samples(count: int = 5) -> torch.Tensor:
    """Samples to ask about, float32 (count, 1, 8, 8)."""
    return torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(3))


def epsilon_request(timestep: int = 421, **changes: Any) -> EpsilonRequest:
    """A question about five samples of two classes."""
    given = {"samples": noisy_samples(), "labels": torch.arange(5) % 2, "timestep": timestep}
    return EpsilonRequest(**{**given, **changes})


def sample_request(node: Node, labels: list[int], numbers: list[int], **changes: Any) -> SampleRequest:
    """A question for images."""
    given = {"labels": torch.tensor(labels), "numbers": torch.tensor(numbers), "spec": node.spec, "sampler": "ddpm"}
    return SampleRequest(**{**given, **changes})


def evaluate_request() -> EvaluateRequest:
    """A question about held-out images, through a network that nobody trained."""
    network = DomainClassifier(1, 8, 2).state_dict()
    return EvaluateRequest(
        weights=transport.encode_tensors(network),
        weights_hash=hash_weights(network),
        extractor="random-features",
        centres=torch.zeros(2, 32),
        radii=torch.zeros(2, dtype=torch.float64),
        spec=SPEC,
    )


def drawn_images(node: Node, predict: PredictNoise, labels: list[int], numbers: list[int], name: str = "silo-1") -> Any:
    """The images that a silo should draw: the plain loop from the shared noise."""
    noise = draw_initial_noise(0, 20, (1, 8, 8))[numbers]
    scheduler, generator = make_scheduler(node.config.recipe, 3), make_generator(0, "sampling", name)
    return to_uint8(sample(predict, scheduler, noise, torch.tensor(labels), generator))
