"""Points of the probability simplex: the nearest one, and draws by it; UnlearnDiffAtk keeps its token choices there."""

import torch
from torch import Tensor


def project(values: Tensor) -> Tensor:
    """The nearest point of the simplex {p >= 0, sum p = 1} to each row.

    That point is max(a - mu, 0) with the one mu that makes its sum 1 (Held, Wolfe and Crowder 1974); published with an upper
    bound of 1 on every entry, which the sum implies. mu is at least max(a) - 1. The published code finds it by bisection, to an
    error of 1e-5, which over CLIP's 49,408 tokens is one of up to 0.5 in the sum; the sum is convex and piecewise linear in mu,
    so that Newton's steps from below end at mu itself, in fewer passes.

    Args:
        values: [..., V], finite.

    Returns:
        [..., V], of the same type; each row is projected by itself.
    """
    low, above = values.amax(-1, keepdim=True) - 1, torch.empty_like(values)
    while True:
        total = torch.sub(values, low, out=above).clamp_(min=0).sum(-1, keepdim=True)
        step = low + (total - 1) / above.sign_().sum(-1, keepdim=True)
        if not bool((step > low).any()):
            return torch.sub(values, low, out=above).clamp_(min=0)
        low = torch.maximum(low, step)  # no step back: rounding must not make a row go round in circles


def draw(rows: Tensor, uniform: Tensor) -> Tensor:
    """Draws one entry of each row by its probabilities.

    Args:
        rows: Points of the simplex [..., V].
        uniform: Numbers in [0, 1), float64 [...].

    Returns:
        int64 [...]; never an entry of probability 0.
    """
    cumulative = rows.to(torch.float64).cumsum(-1)
    asked = (uniform.to(torch.float64).unsqueeze(-1) * cumulative[..., -1:]).contiguous()
    return torch.searchsorted(cumulative, asked, right=True).squeeze(-1).clamp_(max=rows.shape[-1] - 1)
