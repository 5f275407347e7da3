from __future__ import annotations

import torch

# Tiny networks: threads cost more than they bring, and the tests share one core.
torch.set_num_threads(1)
