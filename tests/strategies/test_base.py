from __future__ import annotations

import pytest
import torch

from fedsynth.config import RunConfig
from fedsynth.messages import wire
from fedsynth.spec import ImageSpec
from strategies.base import Task
from strategies.conversation.census import Census
from strategies.cooperation.dfd import DfD

SPEC = ImageSpec(3, 16, ("a", "b"))


@pytest.mark.parametrize(("asked", "needed"), [("auto", 4), (1, 1), (3, 3)])
def test_a_round_needs_every_silo_unless_told_otherwise(asked: int | str, needed: int) -> None:
    config = RunConfig.from_run_config({"min-replies": asked})
    assert Task(config, SPEC, Census.unknown(range(4), 2), torch.zeros(1)).min_replies == needed


def test_every_message_carries_the_image_format() -> None:
    task = Task(RunConfig(), SPEC, Census.unknown([1], 2), torch.zeros(1))
    assert wire.spec_from_config(DfD().train_config(task)) == SPEC
