"""Between stored images and the range a diffusion model works in."""

from __future__ import annotations

import numpy as np
import torch


def to_model_range(images: np.ndarray) -> torch.Tensor:
    """Turn uint8 images (N, H, W, C) into float32 tensors (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


def to_uint8(samples: torch.Tensor) -> np.ndarray:
    """Turn tensors (N, C, H, W), clipped to [-1, 1], into uint8 images (N, H, W, C)."""
    scaled = ((samples.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return np.asarray(scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy())
