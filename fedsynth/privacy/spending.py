"""``privacy.jsonl``: what a silo's images have spent of their privacy, one line per release or training.

Lines are chained, see :mod:`fedsynth.chain`, and each is written before what it speaks of begins. All of them add up,
whatever run, method or state of the images they belong to: an image that was there from the first to the last has spent
what all together cost, and no image more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from fedsynth.chain import ChainReport, read_chain
from fedsynth.privacy.accounting import AnyMechanism, Geometric, Mechanism, epsilon
from fedsynth.text import printable

ACCOUNT_FILE = "privacy.jsonl"
"""Its name in a silo's state folder."""

LEAST_SCALE = 0.05
"""Of geometric noise: with less, one release alone has an ε above 20, and counts as one without noise."""
_MOST_LOSS = 30.0
"""Expected privacy loss, in standard deviations, beyond which no ε is computed: the sum would take minutes."""

_PUBLIC = "public-noise-multiplier"
GAUSSIAN, GEOMETRIC, NONE = "gaussian", "geometric", "none"


def note_file(policy: Path, silo: str) -> Path:
    """Return the file beside a policy that keeps where a silo's account stands.

    Args:
        policy: the policy file.
        silo: name of the silo's state folder.
    """
    return policy.with_name(f"privacy-note-{silo}.json")


@dataclass(frozen=True)
class Spending:
    """One line.

    Attributes:
        what: was released or trained, such as ``counts``.
        mechanism: how; None: without noise, so that no ε bounds it.
        data: the state of the images, as their files' names and sizes.
        run: Flower's number of the run.
        time: when, ISO 8601.
        public: what it comes to towards those who see only what became of a secure sum; None: the same.
    """

    what: str
    mechanism: AnyMechanism | None
    data: str
    run: str
    time: str
    public: Mechanism | None = None

    def content(self) -> dict[str, Any]:
        """Return what the line says."""
        said = {"what": self.what, "data": self.data, "run": self.run, "time": self.time}
        public = {} if self.public is None else {_PUBLIC: self.public.noise_multiplier}
        return {**said, **_mechanism_content(self.mechanism), **public}

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Spending:
        """Read a line.

        Raises:
            LookupError, TypeError, ValueError: it says nothing that :meth:`content` does.
        """
        texts = {name: entry[name] for name in ("what", "data", "run", "time")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError("a name is no text")
        mechanism, public = _mechanism_of(entry), None
        if _PUBLIC in entry:
            if not isinstance(mechanism, Mechanism):
                raise ValueError("noise of a sum beside a mechanism of another kind")
            public = replace(mechanism, noise_multiplier=float(entry[_PUBLIC]))
        return cls(mechanism=mechanism, public=public, **{name: printable(text, 80) for name, text in texts.items()})


@dataclass
class AccountReport(ChainReport):
    """What an account says, and whether its chain holds.

    Attributes:
        spendings: its lines.
    """

    spendings: list[Spending] = field(default_factory=list)


def read_account(file: IO[bytes], noted: str = "") -> AccountReport:
    """Read an account, and check its chain.

    Args:
        file: the account.
        noted: hash of a line that was noted earlier; empty: none.
    """
    report = AccountReport()

    def take(entry: Mapping[str, Any]) -> None:
        try:
            report.spendings.append(Spending.of(entry))
        except (LookupError, TypeError, ValueError) as error:
            report.complain(f"line {report.lines} says nothing that can be accounted for ({error})")

    read_chain(file, report, take, noted)
    return report


def spent_epsilon(mechanisms: Iterable[AnyMechanism | None], delta: float) -> float:
    """Return the ε of all mechanisms together at a δ, as :func:`~fedsynth.privacy.accounting.epsilon`.

    Args:
        mechanisms: of every line; None: one without noise.
        delta: δ, 0 < δ < 1.

    Returns:
        An upper bound, >= 0; infinity where a mechanism has no noise, or all have so little that no ε is computed.
    """
    steps: Counter[tuple[float, float]] = Counter()
    releases: Counter[Geometric] = Counter()
    for mechanism in mechanisms:
        if mechanism is None:
            return math.inf
        if isinstance(mechanism, Geometric):
            releases[mechanism] += 1
        else:
            steps[mechanism.noise_multiplier, mechanism.sampling_rate] += mechanism.steps
    trainings = [Mechanism(noise, rate, count) for (noise, rate), count in sorted(steps.items())]
    losses = [_expected_loss(training) for training in trainings]
    losses += [math.sqrt(count) * one.sensitivity / one.scale for one, count in releases.items()]
    if math.hypot(*losses) > _MOST_LOSS:
        return math.inf
    ordered = sorted(releases.elements(), key=lambda one: (one.scale, one.sensitivity))
    return _epsilon((*trainings, *ordered), delta)


@lru_cache(maxsize=64)
def _epsilon(mechanisms: tuple[AnyMechanism, ...], delta: float) -> float:
    return epsilon(mechanisms, delta)


def gaussian(noise_multiplier: float) -> Mechanism | None:
    """Return one release with Gaussian noise of a multiple of the sensitivity; None: too little to be accounted for."""
    try:
        return Mechanism(min(noise_multiplier, 1e6))
    except ValueError:
        return None


def geometric(scale: float, sensitivity: int = 1) -> Geometric | None:
    """Return one release with two-sided geometric noise; None: too little to be accounted for."""
    return Geometric(scale, sensitivity) if LEAST_SCALE * sensitivity <= scale < math.inf else None


def described(mechanism: AnyMechanism | None) -> str:
    """Return a mechanism in words."""
    if mechanism is None:
        return "without noise: no ε bounds it"
    if isinstance(mechanism, Geometric):
        return f"geometric noise of scale {mechanism.scale:g}, sensitivity {mechanism.sensitivity}"
    if (mechanism.sampling_rate, mechanism.steps) == (1, 1):
        return f"Gaussian noise of {mechanism.noise_multiplier:.4g} sensitivities"
    sampled = f"{mechanism.steps:,} steps on a share of {mechanism.sampling_rate:.4g}"
    return f"{sampled}, Gaussian noise of {mechanism.noise_multiplier:.4g} norms"


def _expected_loss(mechanism: Mechanism) -> float:
    """Return μ of the Gaussian mechanism that many steps come near to (Bu et al. 2020, arXiv 1911.11607, cor. 5.4)."""
    noise, rate = mechanism.noise_multiplier, mechanism.sampling_rate
    if rate == 1:
        return math.sqrt(mechanism.steps) / noise
    exponent = min(noise**-2, 600.0)
    return rate * math.sqrt(mechanism.steps * math.expm1(exponent))


def _mechanism_content(mechanism: AnyMechanism | None) -> dict[str, Any]:
    if mechanism is None:
        return {"mechanism": NONE}
    if isinstance(mechanism, Geometric):
        return {"mechanism": GEOMETRIC, "scale": mechanism.scale, "sensitivity": mechanism.sensitivity}
    return {
        "mechanism": GAUSSIAN,
        "noise-multiplier": mechanism.noise_multiplier,
        "sampling-rate": mechanism.sampling_rate,
        "steps": mechanism.steps,
    }


def _mechanism_of(entry: Mapping[str, Any]) -> AnyMechanism | None:
    match entry["mechanism"]:
        case "none":
            return None
        case "geometric":
            return Geometric(float(entry["scale"]), int(entry["sensitivity"]))
        case "gaussian":
            rate, steps = float(entry["sampling-rate"]), int(entry["steps"])
            return Mechanism(float(entry["noise-multiplier"]), rate, steps)
    raise ValueError("an unknown mechanism")
