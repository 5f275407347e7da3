"""For all tests."""

import os

# Threads gain nothing on networks this small, and wait for each other many times longer when a core is taken. Set
# before the first import of an OpenMP library; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
