"""What crosses the wire where a server sees sums only, captured between three real silos and their SuperLink."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from capture import Capture, holds, relay_to
from deployed import LIMIT_SECONDS
from flwr.app import Message
from one_silo import policy_file
from PIL import Image
from real_silos import keys_for_sums, real_settings, write_silos
from tiny_runs import images_of

from experiments.benchmarks.loopback import Loopback
from fedsynth.config import Scalar
from fedsynth.messages import EpsilonAnswer, EpsilonRequest
from fedsynth.output import RunFolder

ROOT = Path(__file__).parents[2]
NAMES = ("east", "north", "south")


@dataclass(frozen=True)
class Captured:
    """What the silos said, in a run that shows every answer and in one of sums; the folders of both."""

    plain: list[Message]
    secure: list[Message]
    folders: list[RunFolder]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    folder = tmp_path_factory.mktemp("sums")
    images = write_silos(folder / "images", dict.fromkeys(NAMES, (0, 1)))
    keys = keys_for_sums(folder / "keys", NAMES)
    policy = policy_file(folder)
    settings = real_settings(
        folder,
        num_clients=3,
        dfd_rounds=3,
        weights="constant",
        max_silo_weight=0.5,
        screening=False,
        fast_replies=True,
    )
    secure: dict[str, Scalar] = {**settings, "secure-aggregation": True, "run-name": "sums"}
    link, captures = Loopback(folder / "link"), list[Capture]()
    with ExitStack() as stack:
        ports = {name: stack.enter_context(relay_to(link.port)) for name in NAMES}
        # After the relays: the silos take their leave through them.
        stack.enter_context(link)
        for name in NAMES:
            port, capture = ports[name]
            captures.append(capture)
            given = {"data-path": str(images[name]), "silo-name": name, "state-path": str(folder / name)}
            given |= {"policy-path": policy, **keys[name]}
            config = " ".join(f'{key}="{value}"' for key, value in given.items())
            link.start_silo(name, config, warm=True, port=port)
        for flat in (settings, secure):
            link.run(str(flat["run-name"]), ROOT, flat, timeout=LIMIT_SECONDS)
        # What silos have in common crosses once: one's messages are whole only beside the others'.
        said = Capture([exchange for capture in captures for exchange in capture.exchanges]).answers()
        (plain_run,) = {message.metadata.run_id for message in said if is_answer(message)}
        yield Captured(
            [message for message in said if message.metadata.run_id == plain_run],
            [message for message in said if message.metadata.run_id != plain_run],
            [RunFolder(Path(str(flat["output-dir"])) / str(flat["run-name"])) for flat in (settings, secure)],
        )


def epsilons(messages: list[Message]) -> list[np.ndarray]:
    """The first prediction of every answer."""
    return [EpsilonAnswer.from_message(message).epsilon[0].numpy() for message in filter(is_answer, messages)]


def is_answer(message: Message) -> bool:
    return message.metadata.message_type == EpsilonRequest.kind


def test_answers_cross_in_a_plain_run_and_in_no_message_of_a_secure_one(captured: Captured) -> None:
    answers = epsilons(captured.plain)
    assert len(answers) == 3 * 3
    assert all(holds(captured.plain, epsilon) for epsilon in answers)
    assert not any(holds(captured.secure, epsilon) for epsilon in answers)


def test_the_silos_were_asked_and_answered_the_same(captured: Captured) -> None:
    plain, secure = map(images_of, captured.folders)
    assert len(plain) == 30
    assert plain.keys() == secure.keys()
    for name in plain:
        one, other = (np.asarray(Image.open(BytesIO(files[name]))).astype(int) for files in (plain, secure))
        assert np.abs(one - other).max() <= 1
    kinds = Counter(message.metadata.message_type for message in captured.secure)
    assert set(kinds) == {"query.describe", "query.prepare", "query.masked", "query.reveal"}
    assert kinds["query.masked"] == kinds["query.reveal"] == 3 * 3
