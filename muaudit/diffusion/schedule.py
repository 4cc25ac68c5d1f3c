"""When and with which random numbers a prompt is optimised: timesteps in blocks, and a random stream for each prompt."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Order = Literal["ascending", "random"]


def spread(total: int, count: int) -> list[int]:
    """Timesteps of UnlearnDiffAtk: the middles of equally long parts of the schedule, in ascending order.

    Args:
        total: Timesteps that the network was trained with, such as 1,000.
        count: How many to take; all of them where there are no more.

    Returns:
        For instance 10, 30, ..., 990 for 50 of 1,000.
    """
    apart = max(1, total // count)
    return list(range(apart // 2, total, apart))[:count]


class Draws:
    """Random numbers for n searches, each from a generator of its own, so that searching them together changes nothing.

    The numbers of a search depend on its seed and on what it has drawn before, never on the others. They are drawn on the CPU,
    which makes them the same on every device.

    Args:
        seeds: One a search.
        device: Where the numbers are wanted.
        dtype: Of `normal`.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device, self.dtype = device, dtype

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with some of the searches only."""
        self.generators = [self.generators[row] for row in rows]

    def normal(self, steps: int, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers [steps, n, *shape]."""
        # float32 whatever the pipeline computes in, so that a wider type sees the same numbers.
        drawn = [torch.randn((steps, *shape), generator=one) for one in self.generators]
        return torch.stack(drawn, 1).to(self.device, self.dtype)

    def uniform(self, steps: int, shape: Sequence[int]) -> Tensor:
        """Numbers in [0, 1), float64 [steps, n, *shape]."""
        drawn = [torch.rand((steps, *shape), generator=one, dtype=torch.float64) for one in self.generators]
        return torch.stack(drawn, 1).to(self.device)

    def integers(self, below: int, steps: int, shape: Sequence[int]) -> Tensor:
        """Integers from 0 up to, not including, a bound [steps, n, *shape]."""
        drawn = [torch.randint(below, (steps, *shape), generator=one) for one in self.generators]
        return torch.stack(drawn, 1).to(self.device)

    def some(self, of: int, count: int, steps: int) -> Tensor:
        """`count` different numbers below `of` [steps, n, count]: which prompts a shared prefix looks at."""
        drawn = [torch.stack([torch.randperm(of, generator=one)[:count] for _ in range(steps)]) for one in self.generators]
        return torch.stack(drawn, 1).to(self.device)
