"""Self-check: what the holder of a model can find wrong with its noise predictions before anybody else sees them.

Where a server sees only sums of answers, nobody else can look at a single one.
"""

from __future__ import annotations

import torch

from fedsynth.mixture.screening import LEEWAY, MAX_EXCESS, answer_statistics


def fault_of_own(
    eps: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, bound: float = 1.0, noise: torch.Tensor | None = None
) -> str | None:
    """Return what is wrong with a model's own answer; None: nothing.

    The bounds of screening hold as they do where holders are undertrained, loosened by :data:`LEEWAY`: a silo does not
    know how the others answer. Whoever knows the noise knows the error as well, of which screening sees a part, the
    excess. It may be :data:`MAX_EXCESS` times that of knowing nothing: of answering 0, whose error is 1, or of
    answering that the image is grey, whichever is larger. On 8×8 digits, at the last of
    :data:`~fedsynth.mixture.screening.LEVELS`, a grey image has an error of 2.5, so that the bound is 3.0. There the
    default recipe has 2.4 after one step of training, 1.2 after 30, 0.7 after 300; a model of the images' negatives has
    4.0, one of white images 4.6.

    Args:
        eps: the answer (n, C, H, W); n·C·H·W of 64 at least, better 500.
        x_t: samples (n, C, H, W) at their noise level.
        alpha_bar: ᾱ_t in (0, 1).
        bound: largest absolute value of clean samples, 1 for pixels.
        noise: ε of ``x_t`` (n, C, H, W) where it was made of images that the model should know; None: the error is not
            looked at.
    """
    if not eps.isfinite().all():
        return "not finite"
    fault = answer_statistics(eps[None], x_t, alpha_bar, torch.tensor([True]), bound)[0].fault_within(LEEWAY)
    if fault or noise is None:
        return fault
    grey = x_t / (1 - alpha_bar) ** 0.5
    most = MAX_EXCESS * max(1.0, _root_mean_square(grey - noise))
    error = _root_mean_square(eps - noise)
    return None if error <= most else f"does not know the images: error {error:.3g} > {most:.3g}"


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
