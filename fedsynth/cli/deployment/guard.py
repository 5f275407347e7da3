"""The process beside a command that ends what the command had started, if it is killed without a chance to do so.

:func:`~fedsynth.cli.deployment.processes.guarded` starts it: ``python -m fedsynth.cli.deployment.guard VARIABLE MARK``.
"""

import sys

from fedsynth.cli.deployment.processes import kill_marked

if __name__ == "__main__":
    sys.stdin.read()  # Ends with the process that holds the other end.
    kill_marked(sys.argv[2], sys.argv[1])
