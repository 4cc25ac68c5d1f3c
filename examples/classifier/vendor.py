"""The vendor's unlearning procedure: named under [procedure] in audit.toml, and run there."""

import torch

from muaudit.examples import Examples


def unlearn(model: torch.nn.Module, forget: Examples, retain: Examples, *, seed: int, steps: int = 20) -> torch.nn.Module:
    """Goes on training on what is to be kept, and hopes that the rest fades."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, labels = torch.tensor(retain.pictured()), torch.tensor(retain.labels)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model
