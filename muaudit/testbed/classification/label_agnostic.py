"""Label-agnostic forgetting (LAF; Shen et al., 2024): no label of either set is looked at.

Representations (what enters the last layer) of the retain set and of the forget set are each learned by a variational
autoencoder. The layers below then move until forgotten representations no longer suit their own autoencoder while retained ones
suit theirs, and until retained ones point where they did while forgotten ones do not.

Adapted: the autoencoders are small, and both terms are taken in one step, where the paper takes turns.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from muaudit.compute import flushed_denormals
from muaudit.errors import UsageError
from muaudit.examples import Examples
from muaudit.testbed.classification.method import Descent, as_batch, batches, checked, frozen


class LabelAgnostic(Descent):
    """Moves the representations of what is to be forgotten away; the last layer stays as it is.

    Attributes:
        autoencoder_steps: Training steps of each autoencoder.
        latent: Width of their code.
        divergence_weight: Weight of the code's divergence from a standard normal.
        temperature: Of the contrast between retained and forgotten directions.
    """

    name: ClassVar[str] = "label_agnostic"
    source: ClassVar[str] = "Shen et al. 2024, arXiv 2404.00506"

    steps: int = Field(default=30, ge=0)
    learning_rate: float = Field(default=0.1, gt=0)
    autoencoder_steps: int = Field(default=200, ge=0)
    latent: int = Field(default=16, gt=0)
    divergence_weight: float = Field(default=0.025, ge=0)
    temperature: float = Field(default=1.0, gt=0)

    @flushed_denormals()
    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Makes the unlearned model."""
        if not isinstance(model, nn.Sequential) or not isinstance(model[-1], nn.Linear):
            raise UsageError("procedure label_agnostic: it moves what enters a last linear layer; this model has no such layer")
        if not len(retain):
            raise UsageError("procedure label_agnostic: the retain set is empty, and its representations are to stay; give one")
        wrong, right = as_batch(forget), as_batch(retain)
        body, before = model.eval()[:-1], frozen(model[:-1])
        theirs, ours = (self.autoencoder(before(part.inputs), seed) for part in (wrong, right))
        body.train()
        optimizer = torch.optim.SGD(body.parameters(), lr=self.learning_rate, momentum=self.momentum)
        pairs = zip(batches(wrong, self.batch_size, seed), batches(right, self.batch_size, seed), strict=False)
        for _, (away, kept) in zip(range(self.steps), pairs, strict=False):
            gone, stayed = body(away.inputs), body(kept.inputs)
            unlearned = misfit(ours, stayed) - misfit(theirs, gone)
            aligned = contrast(stayed, before(kept.inputs), gone, before(away.inputs), self.temperature)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(checked(unlearned + aligned))
            nn.utils.clip_grad_norm_(body.parameters(), 1.0)
            optimizer.step()
        return model.eval()

    def autoencoder(self, found: Tensor, seed: int) -> "Autoencoder":
        """Trains an autoencoder on representations [n, d]: squared error plus weighted divergence; frozen afterwards."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            made = Autoencoder(found.shape[1], self.latent).to(found.dtype)
            optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
            for _ in range(self.autoencoder_steps):
                rebuilt, divergence = made(found, noisy=True)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(checked(mse_loss(rebuilt, found) + self.divergence_weight * divergence))
                optimizer.step()
        return made.requires_grad_(False)


class Autoencoder(nn.Module):
    """A variational autoencoder with one hidden layer each way.

    Args:
        width: Of what it rebuilds.
        latent: Of the code.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, 4 * latent), nn.ReLU(), nn.Linear(4 * latent, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 4 * latent), nn.ReLU(), nn.Linear(4 * latent, width))

    def forward(self, found: Tensor, *, noisy: bool = False) -> tuple[Tensor, Tensor]:
        """What is rebuilt [n, d], and the code's divergence from a standard normal, mean over its numbers.

        Args:
            found: Representations [n, d].
            noisy: Whether a code is drawn, as in training, or the mean one taken.
        """
        mean, log_variance = self.encoder(found).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp() if noisy else mean
        return self.decoder(code), (mean**2 + log_variance.exp() - 1 - log_variance).mean() / 2


def misfit(autoencoder: Autoencoder, found: Tensor) -> Tensor:
    """How badly representations suit an autoencoder: mean exp(s / (s + 1)) of the squared errors s, as the code has it."""
    rebuilt: Tensor = autoencoder(found)[0]
    error = ((rebuilt - found) ** 2).sum(1)
    return (error / (error + 1)).exp().mean()


def contrast(stayed: Tensor, stayed_before: Tensor, gone: Tensor, gone_before: Tensor, temperature: float) -> Tensor:
    """The alignment loss: retained directions as they were, against forgotten ones as they were.

    Args:
        stayed: Representations of retained examples [n, d].
        stayed_before: The original's.
        gone: Representations of forgotten examples [m, d].
        gone_before: The original's.
        temperature: By which the forgotten ones' distances are divided.

    Returns:
        mean(1 - cos) over the retained, less log sum exp((1 - cos) / temperature) over the forgotten.
    """
    near = (1 - cosine_similarity(stayed, stayed_before)).mean()
    return near - ((1 - cosine_similarity(gone, gone_before)) / temperature).logsumexp(0)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`LabelAgnostic` as a vendor's procedure; see `Method.apply`."""
    return LabelAgnostic.model_validate(parameters).apply(model, forget, retain, seed=seed)
