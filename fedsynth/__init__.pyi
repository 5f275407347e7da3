# What type checkers and editors see of the names that __init__.py imports when they are first asked for.
from fedsynth.api.measuring import evaluate as evaluate
from fedsynth.api.run import Run as Run
from fedsynth.api.run import from_pretrained as from_pretrained
from fedsynth.api.synthesis import synthesise as synthesise

__version__: str
__all__ = ["Run", "__version__", "evaluate", "from_pretrained", "synthesise"]
