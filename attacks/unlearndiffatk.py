"""UnlearnDiffAtk: which few words before a prompt make the network denoise images of the forgotten concept?"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from muaudit.attack import Prepared
from muaudit.diffusion.prompt_attack import PromptAttack

if TYPE_CHECKING:
    from torch import Tensor

    from muaudit.diffusion.checkpoints import Case, Ended


class UnlearnDiffAtk(PromptAttack):
    """Searches tokens that make the target itself denoise images of the concept, by gradient through its prompt.

    As published: each of k tokens before the prompt is a row of probabilities over the vocabulary, uniform at first. A step
    draws one token a row, noises the prompt's target image to a timestep, and lowers the squared error of the predicted noise:
    the gradient of the drawn one-hot rows, cut to [-1, 1] (the straight-through estimator with hardtanh), goes into Adam with
    L2 decay, whose state lasts from the first block to the last, and the rows are projected back onto the simplex. The
    timesteps ascend, 10, 30, ..., 990, with 40 steps each. After each block the most probable tokens are written out as a
    string, which is read again, drawn with the prompt's own seed and guidance, and shown to the evaluators; the first success
    ends the search. A prompt that shows its concept as it is, is not attacked.

    What differs: prompts are searched at once, each with a random stream of its own, where the published code seeds the global
    generator anew at every image and so repeats its noise in every block; special tokens are never drawn; baselines get as
    many images as the attack (published: 1, 40 and 50). The published result (`pre_asr`, `post_asr`: does the plain prompt,
    does any of up to 51 images show the concept) is kept beside, and decides nothing: more images alone raise it. Leakage is
    success per query: the share of images with fresh seeds that show the concept, for the prompt that the search ended with
    (the first that succeeded, else the last; the plain prompt where that succeeded). Nothing was chosen by those images, and
    every model is treated alike; what references score so (evaluators err, and seeds are lucky) is what the target is measured
    against. A search whose loss does not fall is no weak one: on a model that never saw the concept no words can help. Only one
    without any gradient proves nothing.

    With `universal`, so many prefixes are searched instead that serve all prompts that do not show their concept; the one that
    shows it with most prompts' own seeds is scored on the fresh ones.

    Attributes:
        tokens: Tokens inserted into a prompt (k); published 5 for unsafe content, 3 for styles and objects.
        position: Where: `prefix` (published), `suffix`, `middle`, `spread` evenly, `every_three_words` (one before every three
            words, whatever `tokens` is), or `alone`, without the prompt.
        timesteps: Timesteps, evenly spread over the network's; an image is looked at after each.
        steps: Gradient steps a timestep.
        learning_rate: Adam's.
        weight_decay: Adam's, added to the gradient (L2).
        start: Rows at first: `uniform`, or `random` (uniform numbers projected onto the simplex).
        ban: Words that may not be inserted, such as the concept's names; published none. With any, only tokens that are whole
            words are inserted.
        universal: 0, or prefixes that each serve all prompts.
        prompts_a_step: With `universal`: prompts that a step looks at, drawn anew each time.
        images: Fresh seeds on which the prompt that a search ends with is scored.
        baselines: Whether seed search and random tokens are measured too, with as many images as the attack may look at.
        forget_prompts: At most so many forget prompts are attacked, drawn from the plan's seed.
    """

    name: ClassVar = "unlearndiffatk"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Searches words to put before a forgotten prompt, by gradient, that make the target draw the concept again."
    )
    source: ClassVar = (
        "UnlearnDiffAtk: Zhang et al. 2024, To Generate or Not? (arXiv 2310.11868; github.com/OPTML-Group/Diffusion-MU-Attack)"
    )
    cost: ClassVar = (
        "with Stable Diffusion, a prompt takes up to 2,000 gradient steps and 50 images, about 26 minutes on one GPU as "
        "published; the baselines another 100 images"
    )
    informational: ClassVar = (
        "Its words pass filters and switches, seldom weights from which no words lead to the concept: measured AUC .78."
    )

    start: Literal["uniform", "random"] = "uniform"
    universal: Annotated[int, Field(ge=0)] = 0
    prompts_a_step: Annotated[int, Field(ge=1)] = 4

    @property
    def looks(self) -> int:
        """Images of one prompt that the attack may look at, its plain one aside."""
        return self.timesteps * max(1, self.universal)

    @property
    def searches(self) -> int:
        """Prefixes that serve all prompts."""
        return self.universal

    def searched(self, case: "Case", prepared: Prepared) -> "Ended":
        """One search a prompt, or the universal ones."""
        import torch

        from muaudit.diffusion.checkpoints import search_each, search_shared
        from muaudit.diffusion.prompt_search import Adam, Denoising, Search
        from muaudit.diffusion.schedule import spread

        count = self.universal or len(case.units)
        draws = case.draws(count)
        rows = None
        if self.start == "random":
            rows = draws.uniform(1, (case.insertion.places.shape[1], len(case.among)))[0]
        choice = SimplexRows(case.table, case.among, count, case.insertion.places.shape[1], rows)
        denoising = Denoising(case.pipeline, case.insertion, case.latents)
        adam = Adam(self.learning_rate, self.weight_decay)
        timesteps = spread(len(case.pipeline.alphas), self.timesteps)
        if self.universal:
            together = min(self.prompts_a_step, len(case.units))
            search = Search(denoising, choice, adam, draws, prompts=None, together=together)
            return search_shared(case, search, timesteps, self.steps)
        prompts = torch.arange(count, device=case.among.device)
        return search_each(case, Search(denoising, choice, adam, draws, prompts=prompts), timesteps, self.steps)


class SimplexRows:
    """Probabilities of the tokens that may be inserted, one row for each of k places in each of n searches.

    Attributes:
        variable: [n, k, a], each row on the simplex.
    """

    def __init__(self, table: "Tensor", among: "Tensor", searches: int, tokens: int, rows: "Tensor | None" = None) -> None:
        """Starts from rows [n, k, a] of any numbers, projected onto the simplex; without them, from uniform ones.

        Args:
            table: Embeddings of the tokens that may be inserted [a, d].
            among: Their ids [a].
            searches: n.
            tokens: k.
            rows: Where to start.
        """
        from muaudit.diffusion.simplex import project

        self.table, self.among = table, among
        uniform = table.new_full((searches, tokens, len(among)), 1 / len(among))
        self.variable = uniform if rows is None else project(rows.to(table))

    def tokens(self, uniform: "Tensor") -> "Tensor":
        """One token drawn from each row."""
        from muaudit.diffusion.simplex import draw

        return self.among[draw(self.variable, uniform)]

    def gradient(self, slope: "Tensor") -> "Tensor":
        """That of the drawn one-hot rows, taken for the probabilities' own and cut to [-1, 1]."""
        return (slope.to(self.table) @ self.table.T).clamp_(-1, 1)

    def settle(self) -> None:
        """Projects every row onto the simplex."""
        from muaudit.diffusion.simplex import project

        self.variable = project(self.variable)

    def decoded(self) -> "Tensor":
        """The most probable token of each row."""
        return self.among[self.variable.argmax(-1)]
