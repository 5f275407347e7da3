"""A training step in other precisions and layouts: ``python -m experiments.benchmarks.steps [--output-dir FOLDER]``.

Forward, backward and AdamW step on one thread of a CPU, with networks of the default recipe: as the product does it, in
bfloat16 (autocast), with channels last, and compiled by ``torch.compile``, which needs a C++ compiler. CPU time, the
fastest of a few repeats, in turns; a compiled network is called once before.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel

from experiments.benchmarks.common import machine_facts, publish
from experiments.recipes import Setting
from fedsynth.config import RunConfig
from fedsynth.diffusion import codec_of, initial_unet
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

CLASSES = tuple("0123456789")
NETWORKS: dict[str, tuple[ImageSpec, Setting]] = {
    "8x8": (ImageSpec(1, 8, CLASSES), {}),
    "32x32": (ImageSpec(1, 32, CLASSES), {"dataset": "mnist"}),
    "64x64, width 128": (ImageSpec(3, 64, CLASSES), {"dataset": "imagefolder", "block-out-channels": "128,128"}),
}
STEPS, REPEATS = 8, 5


def _step(unet: UNet2DModel, bf16: bool, shape: tuple[int, ...]) -> Callable[[], None]:
    generator = make_generator(0, "benchmark")
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    noisy, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    levels = torch.randint(0, 1000, shape[:1], generator=generator)
    labels = torch.arange(shape[0]) % len(CLASSES)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predicted = unet(noisy, levels, class_labels=labels).sample
        optimizer.zero_grad(set_to_none=True)
        (predicted.float() - noise).square().mean().backward()
        optimizer.step()

    return step


def measure(spec: ImageSpec, setting: Setting) -> dict[str, float]:
    """Return ms a step by variant, after calling each once."""
    torch.compiler.reset()  # after some eight compilations of a function torch gives up, and runs it as it is
    config = RunConfig.from_run_config(dict(setting))
    shape = (config.training.batch_size, *codec_of(config, spec).shape)
    steps: dict[str, Callable[[], None]] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        for bf16 in (False, True):
            for compiled in (False, True):
                unet = copy.deepcopy(initial_unet(config, spec)).to(memory_format=layout)
                if compiled:
                    unet.compile()
                words = ["bf16" if bf16 else "float32"]
                words += ["channels last"] * (layout is torch.channels_last) + ["compiled"] * compiled
                steps[", ".join(words)] = _step(unet, bf16, shape)
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(REPEATS):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(STEPS):
                step()
            best[name] = min(best[name], 1000 * (time.process_time() - start) / STEPS)
    return best


def main() -> None:
    """Measure every variant of every network and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: measure(*network) for name, network in NETWORKS.items()}
    variants = next(iter(results.values()))
    rows = [
        {"ms a step": variant, **{name: f"{result[variant]:.1f}" for name, result in results.items()}}
        for variant in variants
    ]
    publish("steps", machine_facts(), rows, results, options.output_dir)


if __name__ == "__main__":
    main()
