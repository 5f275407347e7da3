"""A server that wants one image of a silo: it sends networks that let one image alone into a sum.

The networks are a classifier's in shape. Their convolutions hand every pixel through unchanged, and their hidden units
are gates: ``silu(K (w·x - t))`` is nothing for every image but those with ``w·x > t``. Where one image is above ``t``,
a sum over all images is a sum over that one, and the sums of products of gate and pixels are its pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from numpy.typing import NDArray
from one_silo import Node, settings_of
from PIL import Image

from clients.app import app
from fedsynth.data import load_dataset
from fedsynth.evaluation import DomainClassifier
from fedsynth.evaluation.networks.random_features import RANDOM_FEATURES, RandomFeatures
from fedsynth.evaluation.silo_measures import hash_weights
from fedsynth.messages import PROTOCOL, EvaluateRequest, transport
from fedsynth.policy import SiloPolicy, document
from fedsynth.spec import ImageSpec

SPEC = ImageSpec(1, 8, tuple("0123456789"))
PER_CLASS = 30
STEEP = 1e4
LEVEL = 20.0
"""Added to every pixel, so that SiLU hands it through."""
LARGE = 100.0
"""Deviation of constant channels, beside which a group norm does not see the pixels."""
Sums = tuple[NDArray[np.float64], NDArray[np.float64]]
Ask = Callable[[dict[str, torch.Tensor]], Sums | None]


@pytest.fixture
def silo(tmp_path: Path) -> Node:
    """Three hundred digits in a silo that answers everything."""
    train, _ = load_dataset("digits")
    for digit in range(10):
        (tmp_path / "clinic" / str(digit)).mkdir(parents=True)
        for row in np.flatnonzero(train.labels == digit)[:PER_CLASS]:
            Image.fromarray(train.images[row, :, :, 0]).save(tmp_path / "clinic" / str(digit) / f"{row}.png")
    policy = SiloPolicy(answers=("describe", "prepare", "train", "statistics", "evaluate"))
    (tmp_path / "silo-policy.toml").write_text(document(policy))
    return Node(
        settings_of(tmp_path, dataset="imagefolder"),
        SPEC,
        data_path=str(tmp_path / "clinic"),
        silo_name="clinic",
        state_path=str(tmp_path / "state"),
        policy_path=str(tmp_path / "silo-policy.toml"),
    )


def images_of(silo: Node) -> NDArray[np.float64]:
    """What the server must not learn: (300, 64), -1 to 1."""
    files = sorted(Path(str(silo.context.node_config["data-path"])).rglob("*.png"))
    return np.stack([np.asarray(Image.open(file), np.float64).ravel() for file in files]) / 127.5 - 1


class GatedNetwork:
    """A classifier whose features are those of chosen hidden units; each sees ``w·x - t`` of the 64 pixels x."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            self._weights = {k: torch.zeros_like(v) for k, v in DomainClassifier(1, 8, 10).state_dict().items()}
        # Group norms divide by the deviation that constants of ±LARGE make, and their own factor undoes it.
        self._pass_through("body.0", [(0, 0)], group=4, shift=0.0)
        self._pass_through("body.1", [(0, 0), (0, 1), (1, 0), (1, 1)], group=8, shift=-LEVEL)

    def _pass_through(self, layer: str, offsets: list[tuple[int, int]], group: int, shift: float) -> None:
        weight, bias = self._weights[f"{layer}.0.weight"], self._weights[f"{layer}.0.bias"]
        factor, level = self._weights[f"{layer}.1.weight"], self._weights[f"{layer}.1.bias"]
        for number, (row, column) in enumerate(offsets):
            first = number * group
            for sign, channel in ((1, first), (-1, first + 1)):
                weight[channel, 0, 1 + row, 1 + column] = sign
                bias[channel] = sign * shift
            bias[first + 2], bias[first + 3] = LARGE, -LARGE
            factor[first], level[first] = LARGE * (2 / group) ** 0.5, LEVEL

    def weights(self, directions: NDArray[np.float64], levels: NDArray[np.float64]) -> dict[str, torch.Tensor]:
        """State dict for units ``silu(directions @ x + levels)``, directions (64, 64)."""
        matrix = np.zeros((64, 64, 4, 4))
        for pixel in range(64):
            row, column = divmod(pixel, 8)
            matrix[:, 8 * (2 * (row % 2) + column % 2), row // 2, column // 2] = directions[:, pixel]
        given = {
            "body.4.weight": torch.from_numpy(matrix.reshape(64, 1024)).float(),
            "body.4.bias": torch.from_numpy(levels - LEVEL * directions.sum(axis=1)).float(),
        }
        return {**self._weights, **given}


def extract(ask: Ask) -> NDArray[np.float64] | None:
    """Return pixels (64,) of one image of whoever answers ``ask``, from three answers; None if they do not help."""
    network = GatedNetwork()
    direction = np.random.default_rng(1).normal(size=64)
    low, high = -np.abs(direction).sum(), np.abs(direction).sum()
    for _ in range(2):  # from the range of all images to the distance of two
        thresholds = np.linspace(low, high, 64)
        answer = ask(network.weights(np.tile(STEEP * direction, (64, 1)), -STEEP * thresholds))
        if answer is None or answer[0].shape != (64,):
            return None
        above = np.flatnonzero(answer[0] > STEEP * 1e-3)
        if not 0 < len(above) < 64:
            return None
        low, high = thresholds[above[-1]], thresholds[above[-1] + 1]
    rise = -np.diff(answer[0]) / (STEEP * np.diff(thresholds))
    alone = np.flatnonzero(np.abs(rise - 1) < 0.05)
    if not len(alone):
        return None
    threshold = thresholds[alone[0]]
    directions, levels = np.eye(64), np.full(64, LEVEL)
    directions[63], levels[63] = STEEP * direction, -STEEP * threshold
    answer = ask(network.weights(directions, levels))
    if answer is None or answer[0].shape != (64,):
        return None
    total, products = answer
    pixels = products[63] / total[63] - LEVEL
    pixels[63] = (threshold + total[63] / STEEP - direction[:63] @ pixels[:63]) / direction[63]
    return pixels


def answer_to(silo: Node, weights: dict[str, torch.Tensor], size: int = 8, **config: Any) -> Message:
    """Ask for statistics in a network, in the words of every version of the protocol at once."""
    given = {
        **{"protocol": PROTOCOL, "image-channels": 1, "image-size": size, "classes": list(SPEC.classes)},
        **{"weights-hash": hash_weights(weights), "min-statistics-samples": 2, "extractor": RANDOM_FEATURES},
    }
    content = RecordDict({"config": ConfigRecord({**given, **config})})
    content["arrays"] = transport.encode_tensors({"shift": torch.zeros(64, dtype=torch.float64)})
    content["weights"] = transport.encode_tensors(weights)
    return app(Message(content, dst_node_id=silo.context.node_id, message_type="query.statistics"), silo.context)


def sums_in(message: Message) -> Sums | None:
    """A vector and a matrix of any answer; None if there are none."""
    if message.has_error() or "arrays" not in transport.array_names(message):
        return None
    arrays = transport.decode_tensors(transport.array_record(message, "arrays")).values()
    found = {array.ndim: array.double().numpy() for array in arrays}
    return (found[1], found[2]) if {1, 2} <= found.keys() else None


def likeness(guess: NDArray[np.float64] | None, images: NDArray[np.float64]) -> float:
    """Largest correlation of a guess with an image, 0 of no guess."""
    if guess is None or not np.isfinite(guess).all() or guess.std() == 0:
        return 0.0
    return max(float(np.corrcoef(guess, image)[0, 1]) for image in images)


def test_no_image_can_be_let_alone_into_a_sum(silo: Node) -> None:
    """With sums through the server's network, three messages gave an image with correlation 1 - 2e-11."""
    pixels = extract(lambda weights: sums_in(answer_to(silo, weights)))
    assert likeness(pixels, images_of(silo)) < 0.9


def test_no_choice_of_the_server_changes_the_answer(silo: Node) -> None:
    """Two answers that differ could be subtracted; there is one, and refusals say nothing of the images."""
    weights = GatedNetwork().weights(np.eye(64), np.zeros(64))
    asked: list[dict[str, Any]] = [
        {},
        {"weights-hash": "0" * 64},
        {"min-statistics-samples": 299},
        {"extractor": "domain-classifier"},
        {"extractor": hash_weights(weights)},
        {"extractor": "pixels"},
        {"classes": [*SPEC.classes, "ten"]},
        {"classes": list(SPEC.classes[::-1])},
        {"classes": ["0"]},
        {"size": 9},
        {"size": 16},
        {"image-channels": 3},
    ]
    runs: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"holdout_fraction": 0.5},
        {"skip_bad_images": True},
        {"state_dir": "elsewhere"},
    ]
    messages = [answer_to(silo.again(**run), weights) for run in runs]
    for run, given in enumerate(asked, 10):
        (asking := silo.again()).context.run_id = run
        messages.append(answer_to(asking, weights, **given))
    found = [sums for message in messages if (sums := sums_in(message)) is not None]
    assert len(found) == len(runs) + 6
    for vector, matrix in found[1:]:
        np.testing.assert_array_equal(vector, found[0][0])
        np.testing.assert_array_equal(matrix, found[0][1])
    reasons = {str(message.error.reason) for message in messages if message.has_error()}
    assert len([reason for reason in reasons if "line 'extractors" in reason]) == 3
    assert len([reason for reason in reasons if "told once: give image-size = 8" in reason]) == 1
    assert len(reasons) == 4


def test_best_guess_from_the_answer_is_no_better_than_one_without_it(silo: Node) -> None:
    """Pixels whose features are the answer's mean, found by gradient descent: an average digit, no image."""
    sums = sums_in(answer_to(silo, GatedNetwork().weights(np.eye(64), np.zeros(64))))
    assert sums is not None
    images, public = images_of(silo), load_dataset("digits")[1].images.reshape(-1, 64) / 127.5 - 1
    start = torch.from_numpy(public.mean(axis=0)).float()
    guess = _inverted(torch.from_numpy(sums[0]).float(), start)
    assert likeness(guess, images) < likeness(start.double().numpy(), images) + 0.05


def _inverted(mean: torch.Tensor, start: torch.Tensor) -> NDArray[np.float64]:
    """Pixels (64,) near ``start`` whose random features come closest to ``mean``."""
    network, pixels = RandomFeatures(), start.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=0.02)
    for _ in range(200):
        loss = (network.of_pixels(pixels.view(1, 1, 8, 8))[0] - mean).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pixels.detach().double().numpy()


def test_one_fact_asked_in_ten_ways_stays_noisy_and_is_not_asked_more_often(silo: Node) -> None:
    """How many held-out images have a bright pixel 20: the classifier is right about those alone, in other weights."""
    network, told = GatedNetwork(), []
    directions, levels = np.zeros((64, 64)), np.zeros(64)
    directions[0, 20] = STEEP
    for run in range(11):
        levels[0] = -STEEP * (0.5 + 1e-3 * run)
        weights = network.weights(directions, levels)
        weights["head.weight"][:, 0], weights["head.weight"][0, 0] = 1.0, 0.0
        request = EvaluateRequest(
            weights=transport.encode_tensors(weights),
            weights_hash=hash_weights(weights),
            extractor=RANDOM_FEATURES,
            centres=torch.zeros(2, 32),
            radii=torch.full((2,), 1e-3, dtype=torch.float64),
            spec=SPEC,
        )
        asking = silo.again(holdout_fraction=0.5)
        asking.context.run_id = 100 + run
        if run < 10:
            told.append(asking.ask(request).wrong_outside)
    assert "evaluations-in-all = 10" in asking.refusal(request)
    # Two-sided geometric noise of scale 2: ten equal draws come once in a million times; exact counts would be equal.
    assert min(told) > 50
    assert len(set(told)) > 1
