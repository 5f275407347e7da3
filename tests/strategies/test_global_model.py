from __future__ import annotations

import numpy as np
import torch

from fedsynth.config import RunConfig
from fedsynth.diffusion import draw_initial_noise, initial_unet, make_scheduler
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec
from strategies.base import Task
from strategies.conversation.census import Census
from strategies.global_model import draw_from_model


def test_images_are_the_plain_ancestral_loop_from_the_shared_noise() -> None:
    settings = {"block-out-channels": "8,8", "seed": 5, "sampling-steps": 3, "device": "cpu", "sampler": "ddpm"}
    config, spec = RunConfig.from_run_config(settings), ImageSpec(1, 8, ("a", "b"))
    labels = torch.tensor([1, 0, 1, 1])
    unet = initial_unet(config, spec)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.1)
    outcome = draw_from_model(Task(config, spec, Census.unknown([1], 2), labels), unet.state_dict())

    scheduler, generator = make_scheduler(config.diffusion, 3), make_generator(5, "sampling")
    x = draw_initial_noise(5, 4, (1, 8, 8))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x, generator=generator).prev_sample
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(outcome.images, expected.astype(np.uint8))
    np.testing.assert_array_equal(outcome.labels, labels.numpy())
    assert outcome.unet is not None
