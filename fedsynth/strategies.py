"""What a strategy of your own derives from, and what it is handed: one name in a clone and in a wheel.

A wheel holds the package ``strategies`` inside of fedsynth (:mod:`fedsynth.sides`), where a plain ``import strategies``
finds it only once it has been made importable. Nothing in fedsynth imports this module.
"""

from __future__ import annotations

from fedsynth.sides import make_sides_importable

make_sides_importable()

from strategies.averaging.base import AveragingStrategy  # noqa: E402
from strategies.averaging.updates import Update  # noqa: E402
from strategies.base import Outcome, SynthesisStrategy, Task  # noqa: E402
from strategies.conversation.ask import Question  # noqa: E402
from strategies.conversation.exchange import Exchange  # noqa: E402

__all__ = ["AveragingStrategy", "Exchange", "Outcome", "Question", "SynthesisStrategy", "Task", "Update"]
