"""For all tests."""

import os
import shutil
from pathlib import Path

# Threads gain nothing on networks this small, and wait for each other many times longer when a core is taken. Set
# before the first import of an OpenMP library; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# Flower ends the SuperLink, and with it whatever runs, when its database waits 5 s for a disk: keep it in memory.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
