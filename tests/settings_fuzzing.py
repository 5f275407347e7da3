"""Setting and policy files with seeded damage: what people's editors, tools and fingers make of them."""

from __future__ import annotations

import random
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from fedsynth.cli.run import read_setting
from fedsynth.config import KEYS, RunConfig
from fedsynth.errors import UserError
from fedsynth.policy import SiloPolicy, document, plan_of, read_policy, refusals
from fedsynth.spec import ImageSpec

VALUES: list[Any] = [
    *(0, 1, -1, 2, 2**31, 2**63 - 1, -(2**63), 10**9, 0.0, -0.0, 0.5, 1e-308, 1e308, float("nan"), float("inf")),
    *(True, False, "", "auto", "a" * 5000, "é\u202e\n", "../..", "os:system", "8,8", "8," * 5000, "dfd", "fedavg"),
    *([], ["dfd"], [1], {}, {"a": 1}, "unlimited", "ula", "paper", "silos", "1e999", "10_0"),
]
PIECES = [b"\xff", b"\0", b"[", b"]]", b'"', b"\\u0000", b"= =", b"\r", b"#", b"1_0"]
ENCODINGS = ["utf-16", "utf-8-sig", "latin-1", "utf-32"]
PEAK_BYTES = 2**27
SPEC = ImageSpec(1, 8, ("a", "b"))


def survivors_of(kind: str, mutations: int, folder: Path, seed: int = 0) -> int:
    """Read mutations of a run's setting or of a silo's policy, and return how many were still usable.

    Raises:
        AssertionError: reading one raised something else than UserError, warned, or took much memory.
    """
    rng = random.Random(f"{kind} {seed}")
    read = {"setting": _read_setting, "policy": _read_policy}[kind]
    path, survivors = folder / f"{kind}.toml", 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(mutations):
            path.write_bytes(_mutated(kind, rng))
            survivors += _is_usable(read, path, f"{kind} {seed} {number}", number % 50 == 0)
    return survivors


def _is_usable(read: Callable[[Path], None], path: Path, which: str, measure: bool) -> bool:
    refused = ""
    if measure:
        tracemalloc.start()
    try:
        read(path)
    except UserError as error:
        refused = str(error) or "without a word"
    except Exception as error:
        raise AssertionError(f"{which}: {type(error).__name__}: {error}\n{path.read_bytes()[:2000]!r}") from error
    finally:
        if measure:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < PEAK_BYTES, which
    assert refused != "without a word", which
    assert len(refused) < 200_000, which
    return not refused


def _read_setting(path: Path) -> None:
    config = RunConfig.from_run_config(read_setting(path))
    assert RunConfig.from_run_config(config.to_run_config()) == config
    plan_of(config, SPEC)


def _read_policy(path: Path) -> None:
    policy = read_policy(path)
    path.write_text(document(policy), encoding="utf-8")
    assert read_policy(path) == policy
    refusals(policy, plan_of(RunConfig(), SPEC))


def _mutated(kind: str, rng: random.Random) -> bytes:
    flat: dict[str, Any] = {"strategy": rng.choice(["dfd", "fedavg", "pooled", "fedddpm"]), "seed": 3, "alpha": 0.5}
    if kind == "policy":
        flat = SiloPolicy().public()
    names = sorted(KEYS) if kind == "setting" else sorted(flat)
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            flat[rng.choice(names)] = rng.choice(VALUES)
        return _toml(flat)
    return _damaged(_toml(flat), rng)


def _toml(flat: dict[str, Any]) -> bytes:
    return tomli_w.dumps(flat).encode("utf-8", "replace")


def _damaged(text: bytes, rng: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[where:where] = rng.choice(PIECES)
            case 1:
                del data[where : where + rng.randint(1, 20)]
            case 2:
                data[where:where] = data[: rng.randint(0, 200)]
            case 3:
                data[:] = bytes(data[where:] + data[:where])
            case 4 if where < len(data):
                data[where] ^= 1 << rng.randrange(8)
            case _:
                data[:] = data.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")
    return bytes(data)
