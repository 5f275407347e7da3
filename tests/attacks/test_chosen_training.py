"""A server that wants one image of a silo: it has a model trained on that one alone, and asks the model, or its losses.

Everything it uses is a configuration key, or a message that the strict default policy answers, or ``train``. Of that
one no policy makes an answer safe: in a network whose features are the pixels, with gradients so small that Adam's step
is linear in them, and with batches and noise that follow from the seed, every answer is linear equations in all images.
150 answers to one step each gave all of 60 images, with a correlation of .97.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_folders import write_images
from one_silo import SPEC, Node, epsilon_request, evaluate_request, sample_request, settings_of

import clients.released
from fedsynth.diffusion import initial_unet, make_scheduler, to_model_range
from fedsynth.diffusion.recipe import denoising_loss
from fedsynth.messages import PrepareRequest, TrainRequest, transport
from fedsynth.policy import SiloPolicy, document
from fedsynth.policy.policy import MessageKind
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

COUNTS = {"even": 60, "odd": 45}
ROUNDS: tuple[MessageKind, ...] = ("describe", "prepare", "epsilon", "sample", "train")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of a silo."""
    write_images(tmp_path / "clinic", COUNTS)
    return tmp_path


def met(folder: Path, policy: SiloPolicy | None = None, **settings: Any) -> Node:
    """The silo as one more run meets it, with whatever that run's server has set."""
    own = {"silo_name": "clinic", "state_path": str(folder / "own"), "policy_path": str(folder / "silo-policy.toml")}
    (folder / "silo-policy.toml").write_text(document(policy or SiloPolicy()))
    plain = {"early_stop": False, "copy_check": False}
    return Node(settings_of(folder, **{**plain, **settings}), SPEC, data_path=str(folder / "clinic"), **own)


def train_request(node: Node, steps: int = 9, left_out: str = "") -> TrainRequest:
    weights = initial_unet(node.config, SPEC).state_dict()
    sent = {name: tensor for name, tensor in weights.items() if not left_out or not name.startswith(left_out)}
    token = "a-run" if left_out else None
    return TrainRequest(arrays=transport.encode_tensors(sent), spec=SPEC, server_round=1, steps=steps, run_token=token)


def test_no_gradient_in_a_network_of_the_server_is_told_by_default(folder: Path) -> None:
    node = met(folder, strategy="fedavg", early_stop=True, copy_check=True)
    assert "'train' is not answered here" in node.refusal(train_request(node))


@pytest.mark.parametrize(
    ("settings", "lines", "said"),
    [
        ({"holdout_fraction": 0.99}, {}, "largest-holdout-fraction = 0.5': the run's holdout-fraction is 0.99"),
        (
            {"holdout_fraction": 0.99},
            {"largest_holdout_fraction": 1.0},
            "least-training-images = 50': there are fewer images here to train on",
        ),
        ({"batch_size": 1}, {}, "least-training-images = 50': 9 steps of 1 images are asked for"),
    ],
)
def test_no_run_has_a_model_trained_on_few_images(
    folder: Path, settings: dict[str, Any], lines: dict[str, Any], said: str
) -> None:
    node = met(folder, SiloPolicy(**lines, answers=ROUNDS), train_steps=9, **settings)
    for request in (PrepareRequest(spec=SPEC, train_seconds=9.0), train_request(node)):
        assert said in node.refusal(request)
    assert not (folder / "own" / "clinic" / "models").exists()


def test_groups_that_may_be_held_out_count_as_held_out(folder: Path) -> None:
    # Of exactly 105 images 84 are left, and with groups 63.
    policy = SiloPolicy(answers=ROUNDS, count_noise=0.0, least_training_images=80)
    node = met(folder, policy, train_steps=9, holdout_fraction=0.2)
    request = PrepareRequest(spec=SPEC, train_seconds=0.01)
    assert not node.send(request).has_error()
    node.context.node_config["group-column"] = "patient"
    assert "least-training-images = 80': there are fewer images here to train on" in node.refusal(request)
    greedy = met(folder, SiloPolicy(answers=ROUNDS), train_steps=9, holdout_fraction=0.3)
    greedy.context.node_config["group-column"] = "patient"
    said = "largest-holdout-fraction = 0.5': the run's holdout-fraction is 0.3, of which whole groups can be twice"
    assert said in greedy.refusal(request)


def losses_by_hand(node: Node, image: np.ndarray, steps: int) -> list[float]:
    """Losses of the first steps, if the network hardly moves and all images are this one."""
    batch = node.config.training.batch_size
    generator = make_generator(node.config.run.seed, "local-training", "clinic")
    recipe = node.config.recipe
    unet, scheduler = initial_unet(node.config, SPEC), make_scheduler(recipe)
    found = []
    for _ in range(steps):
        torch.randint(97, (batch,), generator=generator)
        t = torch.randint(recipe.num_train_timesteps, (batch,), generator=generator)
        noise = torch.randn((batch, 1, 8, 8), generator=generator)
        clean = to_model_range(np.stack([image] * batch))
        noisy = scheduler.add_noise(clean, noise, t)
        with torch.no_grad():
            predicted = unet(noisy, t, class_labels=torch.zeros(batch, dtype=torch.int64)).sample
        loss = denoising_loss(predicted, clean, noise, scheduler.alphas_cumprod[t], recipe)
        found.append(float(loss.mean()))
    return found


@pytest.mark.parametrize(("recipe", "grey"), [("paper", 128), ("default", 62)])
def test_no_loss_that_is_told_is_one_of_a_single_image(recipe: str, grey: int, folder: Path) -> None:
    """Small steps at a rate of nearly 0: each exact loss was an equation in the pixels of its images."""
    node = met(folder, train_steps=24, batch_size=5, recipe=recipe, learning_rate=1e-30)
    told = [node.ask(PrepareRequest(spec=SPEC, train_seconds=1e-9)) for _ in range(3)]
    assert [answer.steps for answer in told] == [10, 11, 12]
    assert len({answer.loss for answer in told}) == 1, "two answers differ by the loss of one step"
    final = node.prepare()
    # Two means over 10 steps each, and four steps that are in none.
    assert len(final.curve_losses) == 2
    assert final.curve_steps[-1] == final.steps == 24
    for loss in (told[0].loss, *final.curve_losses):
        assert loss == float(f"{loss:.3g}")
    image = np.full((8, 8, 1), grey, np.uint8)
    # As a mean over as many steps of any image whatever is, it says nothing of one; where images are what a network
    # predicts, of any that is as far from grey as these are on average.
    assert told[0].loss == pytest.approx(np.mean(losses_by_hand(node, image, 10)), rel=0.2)


def test_a_run_has_one_model_whatever_it_calls_the_classes(folder: Path) -> None:
    node = met(folder, SiloPolicy(optimiser_steps_per_run=9), train_steps=9)
    assert node.prepare().finished
    for other in (
        ImageSpec(1, 8, ("even", "odd", "ten")),
        ImageSpec(1, 8, ("odd", "even")),
        ImageSpec(3, 8, SPEC.classes),
    ):
        said = node.refusal(PrepareRequest(spec=other, train_seconds=9.0))
        assert "classes, size or channels are not those of this run's first message" in said
    assert len(list((folder / "own" / "clinic" / "models").iterdir())) == 1
    again = node.again()
    assert "this run's first message" in again.refusal(PrepareRequest(spec=other, train_seconds=9.0)), "a restart"


def test_new_runs_do_not_train_for_ever(folder: Path) -> None:
    policy = SiloPolicy(optimiser_steps_in_all=20)
    for run in (1, 2):
        node = met(folder, policy, train_steps=9, seed=run)
        node.context.run_id = run
        assert node.prepare().finished
    node = met(folder, policy, train_steps=9, seed=3)
    node.context.run_id = 3
    assert "line 'optimiser-steps-in-all = 20'" in node.refusal(PrepareRequest(spec=SPEC, train_seconds=9.0))


def test_a_model_that_was_brought_does_not_open_the_gate_for_another(folder: Path) -> None:
    """For a strategy without own models the one that was brought is not used, and training was neither counted."""
    node = met(folder, SiloPolicy(privacy_epsilon=8.0), strategy="fedavg", early_stop=True, copy_check=True)
    node.context.node_config["model-path"] = str(folder / "brought")
    assert "line 'privacy-epsilon = 8.0'" in node.refusal(PrepareRequest(spec=SPEC, train_seconds=9.0))


def test_tensors_that_stay_in_the_silo_are_in_no_answer(folder: Path) -> None:
    node = met(folder, SiloPolicy(answers=ROUNDS))
    request = train_request(node, left_out="conv_in")
    answered = transport.array_names(message := node.send(request))
    assert answered == {"arrays"}, message
    names = request.reader()(message).arrays.keys()
    assert names == request.arrays.keys()
    assert not [name for name in names if name.startswith("conv_in")]


def test_where_a_run_is_refused_does_not_tell_the_exact_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server chooses the share that is held out, and by it the number that is compared with a fixed one."""
    monkeypatch.setattr(clients.released, "noisy_label_counts", lambda *_: np.array([40, 30]))
    # Of 105 images 10 are held out, of 70 7: too few for the copy check.
    assert met(folder, holdout_fraction=0.09, copy_check=True).prepare().copied_share is None
    kinds = SiloPolicy(answers=("describe", "prepare", "evaluate"))
    request = evaluate_request()
    # 6 and 4.
    assert "fewer than 5 images" in met(folder, kinds, holdout_fraction=0.05).refusal(request)


def test_the_only_image_of_a_class_is_not_drawn(folder: Path) -> None:
    write_images(folder / "clinic", {"rare": 1})
    node = met(folder, SiloPolicy(count_noise=0.0), train_steps=4)
    node.spec = ImageSpec(1, 8, ("even", "odd", "rare"))
    assert node.prepare().label_counts[2] == 0
    line = "line 'least-class-images = 3': class index 2 counts as absent here"
    assert line in node.refusal(sample_request(node, [0, 2], [0, 1]))
    assert line in node.refusal(epsilon_request(labels=torch.tensor([0, 1, 2, 0, 0])))
    node.ask(sample_request(node, [0, 1], [0, 1]))
    node.ask(epsilon_request())


def test_samples_larger_than_any_image_are_not_looked_at(folder: Path) -> None:
    large = epsilon_request(samples=torch.zeros(1, 1, 8, 520), labels=torch.zeros(1, dtype=torch.int64))
    assert "line 'largest-image-size = 512': samples of 520 pixels" in met(folder).refusal(large)
