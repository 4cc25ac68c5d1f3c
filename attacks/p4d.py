"""P4D, prompting for debugging: which words make the target predict what the original does of the plain prompt?"""

from typing import TYPE_CHECKING, ClassVar, Literal

from muaudit.attack import Bench, Prepared
from muaudit.diffusion.prompt_attack import PromptAttack
from muaudit.errors import ModelError, NotApplicable
from muaudit.models import Denoises, Model

if TYPE_CHECKING:
    from torch import Tensor

    from muaudit.diffusion.checkpoints import Case, Ended
    from muaudit.diffusion.prompt_search import Wanted

COMPARED = 8
"""Noises and timesteps on which a prompt's checkpoints are compared, the same for all of them."""


class P4D(PromptAttack):
    """Searches tokens that make the target predict what the original predicts of the plain prompt.

    The tokens are vectors, at first those of random tokens. A step takes the nearest tokens of the vocabulary by cosine, noises
    the target image, and lowers the squared difference between the target's prediction of the attacked prompt and the
    original's of the plain one; the gradient is taken at the nearest tokens and applied to the vectors, which are never
    replaced by them (hard prompts made easy). After each block the nearest tokens are read as a string, and an image is looked
    at.

    Two versions are published. The defaults are those of the port in UnlearnDiffAtk's code, which sets both attacks side by
    side: a prefix, ascending timesteps, Adam with L2 decay. P4D's own are P4D-N: `position = "alone"`, `tokens = 16`, and
    P4D-K: `position = "every_three_words"`; both with `order = "random"`, `decoupled = true`, `learning_rate = 0.1`, `timesteps
    = 60` and `steps = 50`.

    What differs: the original reads the plain prompt with its own text encoder, as in P4D's code; the port reads it with the
    target's. A search that never succeeds ends with the checkpoint whose loss on the same eight noises is lowest (P4D keeps
    the one whose image is most like the target image by CLIP; the port keeps the last). Special tokens are never inserted. All
    else is as with unlearndiffatk: a prompt that shows its concept as it is, is not attacked; random streams are the prompts'
    own; leakage is success per query, the share of images with fresh seeds that show the concept, for the prompt that the
    search ended with; and `pre_asr`, `post_asr`, the best of several and the baselines stand beside. The original's loss is 0
    for the plain prompt and so tells nothing; it draws the concept without an attack.

    Attributes:
        tokens: Tokens inserted into a prompt.
        position: Where: `prefix`, `suffix`, `middle`, `spread` evenly, `every_three_words` (one before every three words,
            whatever `tokens` is), or `alone`, without the prompt.
        timesteps: Blocks of steps; an image is looked at after each.
        steps: Gradient steps a block.
        order: Timesteps of the blocks: `ascending`, evenly spread, or `random`, one drawn at every step.
        learning_rate: The optimiser's.
        weight_decay: The optimiser's.
        decoupled: Whether the decay is AdamW's; else it is added to the gradient (L2).
        ban: Words that may not be inserted, such as the concept's names. With any, only tokens that are whole words are.
        images: Fresh seeds on which the prompt that a search ends with is scored.
        baselines: Whether seed search and random tokens are measured too, with as many images as the attack may look at.
        forget_prompts: At most so many forget prompts are attacked, drawn from the plan's seed.
    """

    name: ClassVar = "p4d"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Searches words to put before a forgotten prompt that make the target predict what the original predicts of it."
    )
    source: ClassVar = (
        "P4D: Chin et al. 2024, Prompting4Debugging (arXiv 2309.06135; github.com/joycenerd/P4D); its port in "
        "github.com/OPTML-Group/Diffusion-MU-Attack (arXiv 2310.11868)"
    )
    reads_original: ClassVar = True
    cost: ClassVar = (
        "with Stable Diffusion, a prompt takes up to 2,000 gradient steps, as many predictions by the original, and 50 images, "
        "about 35 minutes on one GPU as published; the baselines another 100 images"
    )
    informational: ClassVar = (
        "Its words pass filters and switches, seldom weights from which no words lead to the concept: measured AUC .75."
    )

    order: Literal["ascending", "random"] = "ascending"
    decoupled: bool = False

    def prepare(self, bench: Bench) -> Prepared:
        """As all such attacks; there must be an original."""
        if bench.open_original is None:
            raise NotApplicable("p4d compares predictions with the original's; give the audit [original]")
        return super().prepare(bench)

    def searched(self, case: "Case", prepared: Prepared) -> "Ended":
        """One search a prompt."""
        import torch

        from muaudit.diffusion.checkpoints import search_each
        from muaudit.diffusion.prompt_search import Adam, Denoising, Search
        from muaudit.diffusion.schedule import spread

        wanted = _originals(prepared.open_original(), case)
        draws, total = case.draws(), len(case.pipeline.alphas)
        at_first = draws.integers(len(case.among), 1, (case.insertion.places.shape[1],))[0]
        noise = draws.normal(COMPARED, case.pipeline.latent_shape)
        times = draws.integers(total, COMPARED, ())
        choice = NearestTokens(case.table, case.among, at_first)
        denoising = Denoising(case.pipeline, case.insertion, case.latents, wanted)

        def compared(rows: "Tensor", tokens: "Tensor") -> "Tensor":
            parts = [denoising.loss(rows, tokens, one[rows], at[rows]) for one, at in zip(noise, times, strict=True)]
            return torch.stack(parts).mean(0)

        adam = Adam(self.learning_rate, self.weight_decay, decoupled=self.decoupled)
        search = Search(denoising, choice, adam, draws, prompts=torch.arange(len(case.units), device=case.among.device))
        blocks = [None] * self.timesteps if self.order == "random" else spread(total, self.timesteps)
        return search_each(case, search, blocks, self.steps, compared)


class NearestTokens:
    """Vectors that stand for the tokens nearest to them by cosine, k in each of n searches.

    Attributes:
        variable: [n, k, d].
    """

    def __init__(self, table: "Tensor", among: "Tensor", rows: "Tensor") -> None:
        """Starts from the embeddings of tokens.

        Args:
            table: Embeddings of the tokens that may be inserted [a, d].
            among: Their ids [a].
            rows: Where to start: rows of the table [n, k].
        """
        self.table, self.among = table, among
        self.directions = table / table.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        self.variable = table[rows].clone()

    def tokens(self, uniform: "Tensor") -> "Tensor":
        """The nearest tokens; nothing is drawn."""
        return self.decoded()

    def gradient(self, slope: "Tensor") -> "Tensor":
        """That at the nearest tokens, taken for the vectors' own."""
        return slope.to(self.table).clone()

    def settle(self) -> None:
        """Vectors may be anywhere."""

    def decoded(self) -> "Tensor":
        """The token of the largest cosine with each vector; a vector's own length does not matter."""
        return self.among[(self.variable @ self.directions.T).argmax(-1)]


def _originals(original: Model, case: "Case") -> "Wanted":
    """What the original predicts of the plain prompts."""
    if not isinstance(original, Denoises):
        raise NotApplicable("p4d compares predictions with the original's, and that is no diffusion model")
    pipeline = original.pipeline()
    if pipeline.latent_shape != case.pipeline.latent_shape:
        raise ModelError(
            "the original's latents are of another shape than the target's, so their predictions cannot be compared"
        )
    told = pipeline.conditioning([one.prompt for one in case.units])

    def wanted(noisy: "Tensor", timesteps: "Tensor", rows: "Tensor") -> "Tensor":
        seen = noisy.to(pipeline.device, pipeline.dtype)
        predicted = pipeline.predict(seen, timesteps.to(pipeline.device), told.take(rows))
        return predicted.to(noisy)

    return wanted
