"""``silo-policy.toml``: what a silo answers, how often, and how much of its images it lets be known.

The file is the silo operator's. The server learns the lines that are not marked private, and can change none.
"""

from __future__ import annotations

import json
import math
import textwrap
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from fedsynth.config.keys import Section, allowed_values, kebab, key, literal_words, parse
from fedsynth.config.types import Count, NonNegative, PluginName, Positive, PositiveFloat, StrategyName
from fedsynth.errors import UserError
from fedsynth.files import read_text

POLICY_FILE = "silo-policy.toml"
"""Its name in a silo's folder."""

LONGEST_TOLD = 20_000
"""Characters of a policy as the server is told it."""

UNLIMITED: Literal["unlimited"] = "unlimited"
Limit = Literal["unlimited"] | Annotated[int, Field(ge=0)]

MessageKind = Literal[
    "describe",
    "prepare",
    "epsilon",
    "masked",
    "gradient",
    "sample",
    "train",
    "masked-train",
    "aggregate",
    "upload",
    "statistics",
    "evaluate",
    "confusion",
    "select",
    "synthesise",
]


AGGREGATOR_ANSWERS: tuple[MessageKind, ...] = ("describe", "aggregate")
"""All that a node answers that holds no images."""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_LIST = (BeforeValidator(_tuple), PlainSerializer(list))
ProgramHash = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$", description="the 64 digits that 'fedsynth silo program' prints")
]
ExtractorName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$", description="names of networks")]
Aggregators = Literal["server", "silos", "nodes"]
Contact = Annotated[str, Field(max_length=200)]

_GROUPS = {
    "answers": "What is answered.",
    "noise_queries_per_run": "How much is answered. 0: none at all; unlimited: no ceiling.",
    "count_noise": "What is told of the images themselves.",
    "contact": "Whom to ask.",
}
"""First line of a group -> its heading."""


class PolicyError(UserError):
    """A question that the policy forbids.

    Attributes:
        line: the policy's line, as it acts.
    """

    def __init__(self, line: str, why: str) -> None:
        super().__init__(f"{POLICY_FILE}, line '{line}': {why}")
        self.line = line


class SiloPolicy(Section):
    """What a silo allows; the defaults are what acts where there is no file."""

    PRIVATE: ClassVar[frozenset[str]] = frozenset({"programs"})
    """Fields that the server is not told."""

    answers: Annotated[tuple[MessageKind, ...], *_LIST] = key(
        ("describe", "prepare", "epsilon", "masked", "sample"),
        "messages that are answered. describe: class names, image size, this policy. prepare: images per class, then"
        " steps, losses and near-copies of the training of an own model. epsilon: the own model's predictions for"
        " samples that the server chose, by which training images can be told from others. masked: the same, but the"
        " server can read the sum over several silos only; leave epsilon and sample out to answer in no other way."
        " gradient: gradients of the images in a network that the server chose, with noise (dp-epsilon), of which the"
        " server can read the sum over several silos only. sample: images that the own model draws. train: weights"
        " after training on the images, in a network that the server chose, which can"
        " compute images from the answers. masked-train: the same, but the server can read the"
        " sum over several silos only, from which a network made for it still computes images. aggregate: statements"
        " on what the updates of all silos make, so that nobody need believe the server. upload: the own model"
        " as a whole. statistics, evaluate: sums over real images, see below. confusion, select: noisy"
        " numbers of images by what a classifier of the server says of them: of labelled ones right and wrong, of"
        " unlabelled ones. synthesise: images that a model of the server draws, which stay here; their number is told",
    )
    strategies: Annotated[tuple[Literal["any"] | StrategyName | PluginName, ...], *_LIST] = key(
        ("any",), "strategies that may ask, as the server names them; the lines below bind them all"
    )
    aggregators: Annotated[tuple[Aggregators, ...], *_LIST] = key(
        ("server", "silos", "nodes"),
        "who may combine what this silo sends in a run, whatever its strategy. silos, nodes: what a round makes counts"
        " where a quorum of them has signed the same, with keys of this silo's own file; without server every run"
        " without certificates is refused",
    )
    plugins: Annotated[tuple[PluginName, ...], *_LIST] = key(
        (), "code of this machine, as module:name, that a message may have imported, such as a sampler"
    )
    programs: Annotated[tuple[ProgramHash, ...], *_LIST] = key(
        (),
        "SHA-256 of the programs that may run here, as 'fedsynth silo program' prints that of the installed version;"
        " none: whatever the server sends, which can read the images whatever stands here. Needs --warm. Not told to"
        " the server",
    )
    noise_queries_per_run: Limit = key(100, "messages epsilon in one run: a noise level takes one or more")
    noise_queries_in_all: Limit = key(2_000, "messages epsilon in all runs together")
    samples_per_query: Limit = key(5_000, "samples in one message epsilon")
    images_drawn_per_run: Limit = key(10_000, "images that the own model draws in one run")
    images_drawn_in_all: Limit = key(100_000, "images that the own model draws in all runs together")
    optimiser_steps_per_run: Limit = key(20_000, "training steps in one run")
    optimiser_steps_in_all: Limit = key(200_000, "training steps in all runs together")
    compute_seconds_per_run: Limit = key(86_400, "seconds of work on one run's messages")
    compute_seconds_in_all: Limit = key(2_000_000, "seconds of work in all runs together")
    disk_mb: Limit = key(10_000, "megabytes of the state folder: nothing is trained beyond")
    largest_image_size: Limit = key(512, "side in pixels that the images are brought to")
    network_parameters: Limit = key(
        100_000_000,
        "weights of a network that is trained here, of a base model also those that stay as they are beside adapters:"
        " memory and time follow from all of them",
    )
    count_noise: NonNegative = key(
        1.0,
        "scale in images of the noise on the number of images of a class, which is drawn once per data set and kept:"
        " (1 / scale)-differential privacy of one image, for the counts alone. 0: exact counts. Classes whose noisy"
        " count is below 3 scales count as absent. The same scale, or the run's if it is larger, on every number in"
        " answers to confusion and select, drawn once for a question",
    )
    count_noise_draws: Positive = key(5, "data sets whose noisy counts are told: images added later make another one")
    least_images: Annotated[int, Field(ge=2)] = key(
        50,
        "fewest images behind statistics or evaluate, and fewest in which data sets with exact statistics may differ",
    )
    least_training_images: Positive = key(
        50,
        "fewest images that are trained on, by the noisy counts and the steps and batch size of a training: a model of"
        " few images returns them. Losses that are told are means over as many",
    )
    least_class_images: Positive = key(
        3,
        "fewest images of a class, by the noisy counts: one with fewer counts as absent, and no question about it is"
        " answered. A model returns the only image of a class",
    )
    largest_holdout_fraction: Annotated[float, Field(gt=0, le=1)] = key(
        0.5, "largest share of the images that a run may keep out of training, and so choose the others"
    )
    least_holders: Positive = key(
        1,
        "fewest silos that hold a class, this one included, for questions about it to its own model. The server says"
        " how many there are, and its word is in the audit",
    )
    extractors: Annotated[tuple[ExtractorName, ...], *_LIST] = key(
        ("random-features",), "networks whose features of real images may be summed: no others, whatever is sent"
    )
    statistics_epsilon: NonNegative = key(
        0.0, "ε of the Gaussian noise on those sums, drawn once per data set and network; 0: no noise"
    )
    statistics_delta: Annotated[float, Field(gt=0, lt=1)] = key(1e-5, "δ of that noise")
    evaluation_epsilon: PositiveFloat | Literal["unlimited"] = key(
        1.0,
        "ε of the noise on the numbers of held-out images classified correctly and covered; unlimited: no noise",
    )
    evaluations_in_all: Limit = key(10, "messages evaluate in all runs together: their ε add up")
    classifier_questions_in_all: Limit = key(
        10, "messages confusion and select in all runs together, of which a run sends one each: their ε add up"
    )
    tell_train_loss: bool = key(
        False,
        "tell the loss of a round of train, a mean over real images in a network that the server chose; and the losses"
        " of an own model as they are, not as means over many images with three digits",
    )
    privacy_epsilon: NonNegative | Literal["unlimited"] = key(
        UNLIMITED,
        "ε that all that is told of these images may spend, in all runs together, as to one image more or less: counts,"
        " statistics, evaluation and training add up. What would go beyond is refused, and so is what has no noise,"
        " such as training in a run without dp-epsilon, or a model that was trained elsewhere. unlimited: no budget",
    )
    privacy_delta: Annotated[float, Field(gt=0, lt=1)] = key(
        1e-5, "δ of that ε: far below 1 divided by the number of images"
    )
    least_colluders: Count = key(
        1,
        "silos that may help the server to look behind a sum of gradients: a run of dp-sum whose noise reckons with"
        " fewer (dp-colluders) is refused",
    )
    contact: Contact = key("", "who can say more, told to the server")

    @classmethod
    def unlimited(cls) -> Self:
        """Return what a simulated silo allows, which belongs to whoever runs the server."""
        limits = {
            name: UNLIMITED for name, info in cls.model_fields.items() if UNLIMITED in literal_words(info.annotation)
        }
        told = {"answers": get_args(MessageKind), "count_noise": 0.0, "least_images": 2, "tell_train_loss": True}
        told |= {"least_training_images": 1, "least_class_images": 1, "largest_holdout_fraction": 1.0}
        return cls.model_validate({**limits, **told})

    @model_validator(mode="after")
    def _describes_itself(self) -> Self:
        if "describe" not in self.answers:
            raise ValueError(
                "answers: must hold 'describe', by which a run learns what is allowed; answers = [\"describe\"]"
                " refuses all else"
            )
        return self

    def line(self, name: str) -> str:
        """Return a line as it stands in the file, by field name."""
        return f"{kebab(name)} = {_toml(getattr(self, name))}"

    def refuse(self, name: str, why: str) -> NoReturn:
        """Refuse a question by a field's line.

        Raises:
            PolicyError: always.
        """
        raise PolicyError(self.line(name), why)

    def limit(self, name: str) -> float:
        """Return a ceiling as a number; infinity where there is none."""
        value = getattr(self, name)
        return math.inf if value == UNLIMITED else float(value)

    def public(self) -> dict[str, Any]:
        """Return the lines that the server is told."""
        return self.model_dump(by_alias=True, exclude=set(self.PRIVATE), mode="json")

    @classmethod
    def from_public(cls, text: str) -> Self:
        """Read what a silo tells of its policy.

        Raises:
            UserError: it is none.
        """
        try:
            lines = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"policy: no JSON: {error}") from None
        if not isinstance(lines, dict) or not lines.keys() <= {kebab(name) for name in cls.model_fields}:
            raise UserError("policy: lines that this version does not know")
        return parse(cls, lines)


def read_policy(path: Path) -> SiloPolicy:
    """Read a policy file; lines that it lacks are the default's.

    Raises:
        UserError: no such file, no TOML, or a line that cannot be.
    """
    try:
        lines = tomllib.loads(read_text(path))
    except OSError as error:
        raise UserError(f"policy '{path}': {error.strerror}; 'fedsynth silo init' writes one") from None
    except ValueError as error:
        raise UserError(f"policy '{path}': not TOML: {error}") from None
    try:
        policy = parse(SiloPolicy, lines)
    except UserError as error:
        raise UserError(f"policy '{path}': {error}") from None
    if (length := len(json.dumps(policy.public()))) > LONGEST_TOLD:
        raise UserError(f"policy '{path}': its lists are too long: {length} characters, {LONGEST_TOLD} can be told")
    return policy


def document(policy: SiloPolicy) -> str:
    """Return a policy file, with what every line allows and gives away."""
    text = [
        f"# {POLICY_FILE}: what this silo answers. It is yours: no server can change it, and a question beyond it is"
        " refused\n# by name. A line that is left out has the value that 'fedsynth silo init' writes. Check a change"
        f" with\n#   fedsynth silo policy --check {POLICY_FILE} [--setting RUN.toml]\n# A change acts with the next"
        " message (of programs: with the next start). While the file is missing or has a bad\n# line, nothing is"
        " answered."
    ]
    for name, info in SiloPolicy.model_fields.items():
        if name in _GROUPS:
            text.append(f"\n# --- {_GROUPS[name]}")
        meaning = info.description or ""
        begun = meaning[0].upper() if meaning[0].isascii() else meaning[0]
        explained = f"{begun}{meaning[1:]}. Allowed: {allowed_values(info)}."
        text += ["", *textwrap.wrap(explained, 110, initial_indent="# ", subsequent_indent="# "), policy.line(name)]
    return "\n".join(text) + "\n"


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
