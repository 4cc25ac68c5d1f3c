"""Prompts that ask for a fact in another way, and how a model's answers to them are scored.

Only what the task says goes into a prompt, never what a model said. A prompt that holds the answer proves nothing, so
`given_away` tells which those are; a list of options may hold it, since what guessing among them gives is taken off.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from muaudit.language.judging import mentions, normalised
from muaudit.language.units import chance_corrected
from muaudit.models import GeneratesText, Model, Query, ScoresText, TextScore
from muaudit.results import Frozen, Transcript
from muaudit.task import Fact, ForgetTask, Paraphrase

_LABEL = re.compile(r"(?<!\w)\(?([A-H])(?=[).:])")


class Prompt(Frozen):
    """A prompt with its right completion and, where it offers options, the wrong ones.

    Attributes:
        unit: The fact that it asks for.
        text: What stands before the completion.
        right: The completion that gives the fact back.
        wrong: The other options' completions; none where the answer is open.
        accepted: What counts as right in generated text.
        chat: Whether the text goes through the model's own chat template first.
    """

    unit: str
    text: str
    right: str
    wrong: tuple[str, ...] = ()
    accepted: tuple[str, ...]
    chat: bool = False

    @property
    def chance(self) -> float:
        """What guessing among the options gives; 0 where the answer is open."""
        return 1 / (1 + len(self.wrong)) if self.wrong else 0.0

    def queries(self) -> list[Query]:
        """One query a completion, the right one first."""
        completions = enumerate((self.right, *self.wrong))
        return [Query(self.unit, "probe", self.text, completion, index, self.chat) for index, completion in completions]


def ask(task: ForgetTask, fact: Fact, question: str | None = None) -> Prompt:
    """A question in the task's template.

    Args:
        task: Gives the template.
        fact: Whose answer is right.
        question: The question; the fact's own by default.

    Returns:
        The prompt.
    """
    query = task.ask(fact if question is None else fact.model_copy(update={"question": question}))
    return Prompt(
        unit=fact.id, text=query.prompt, right=query.completion, accepted=(fact.answer, *fact.aliases), chat=query.chat
    )


def given_form(fact: Fact, form: Paraphrase) -> Prompt | None:
    """A form of the fact as the task gives it.

    Args:
        fact: The fact.
        form: One of its paraphrases. A "reversed" one names the subject. A "multiple_choice" one is completed by the letter of
            an option (`B`, among `A)`, `B)`, ... in the prompt) or by the option's text, among the fact's wrong answers.

    Returns:
        The prompt; None where a multiple choice offers no two options that can be told from prompt and fact.
    """
    right = form.completion.strip()
    space = form.completion[: len(form.completion) - len(form.completion.lstrip())]
    if form.form != "multiple_choice":
        accepted = (right,) if form.form == "reversed" else (right, fact.answer, *fact.aliases)
        return Prompt(unit=fact.id, text=form.prompt, right=form.completion, accepted=tuple(dict.fromkeys(accepted)))
    labels = list(dict.fromkeys(_LABEL.findall(form.prompt)))
    options = labels if right in labels else [wrong for wrong in fact.wrong_answers if mentions(form.prompt, [wrong])]
    wrong = tuple(space + option for option in options if option != right)
    return Prompt(unit=fact.id, text=form.prompt, right=form.completion, wrong=wrong, accepted=(right,)) if wrong else None


def subject_of(fact: Fact) -> str | None:
    """Who or what a fact is about, as its question names it: its subject, else its cluster; None where neither is named."""
    return next((name for name in (fact.subject, fact.cluster) if name and name in fact.question), None)


def controls(prompt: Prompt, fact: Fact, others: Sequence[Fact], count: int, rng: np.random.Generator) -> list[Prompt]:
    """The same options put to other subjects, of whom the right one is not true: what a model picks there is guessing.

    A model that knows nothing still prefers some answers to others, so 1 / options understates what guessing gives.

    Args:
        prompt: A prompt with options that names the fact's subject.
        fact: Its fact.
        others: Facts of the same set; their subjects are drawn from.
        count: How many subjects.
        rng: Draws them.

    Returns:
        At most so many prompts; none where the prompt names no subject or nobody else can be asked about.
    """
    subject = subject_of(fact)
    if subject is None or subject not in prompt.text:
        return []
    same = {other.cluster for other in others if other.answer.casefold() == fact.answer.casefold()} | {fact.cluster}
    names = list(dict.fromkeys(name for other in others if other.cluster not in same and (name := subject_of(other))))
    chosen = rng.permutation(len(names))[:count]
    return [prompt.model_copy(update={"text": prompt.text.replace(subject, names[index])}) for index in chosen]


def notes_on_guessing(facts: Sequence[Fact]) -> list[str]:
    """Says of how many facts a multiple choice has no `controls`, because no subject can be told."""
    without = sum(subject_of(fact) is None for fact in facts)
    if not without:
        return []
    return [f"multiple choice: {without} of {len(facts)} questions name no `subject`; there guessing counts as 1 / options"]


def above_guessing(share: float, guessed: Iterable[float], chance: float) -> float:
    """The right option's share less what guessing gives, rescaled to [0, 1].

    Args:
        share: The right option's share of the options' probabilities, in [0, 1].
        guessed: Its shares in the `controls`; the largest of them is what guessing gives.
        chance: One over the number of options; guessing gives at least so much.
    """
    guess = max((chance, *guessed))
    return chance_corrected(share, guess) if guess < 1 else 0.0


class Way(NamedTuple):
    """One way to ask for a fact, as it went on one model.

    Attributes:
        tries: Each prompt's value; several are wordings of an open question, or orders of one multiple choice.
        guessed: The values of the multiple choice's `controls`.
    """

    tries: list[tuple[float, Prompt]]
    guessed: list[float]

    def score(self, name: str) -> float:
        """One number in [0, 1]: the mean over orders; over wordings the best of a `forget` fact, the mean of a `retain` one."""
        found = [value for value, _ in self.tries]
        if chance := self.tries[0][1].chance:
            return above_guessing(float(np.mean(found)), self.guessed, chance)
        return max(found) if name == "forget" else float(np.mean(found))

    def deciding(self, name: str) -> Prompt:
        """The prompt that gave most of a `forget` fact, or least of a `retain` one."""
        best = max if name == "forget" else min
        return best(self.tries, key=lambda tried: tried[0])[1]


def given_away(prompt: Prompt, question: str) -> bool:
    """Whether a prompt holds an accepted answer that the fact's own question does not hold already."""
    return mentions(prompt.text, [answer for answer in prompt.accepted if not mentions(question, [answer])])


def probability(score: TextScore) -> float:
    """Length-normalised probability, exp(mean token log-probability), in [0, 1] (TOFU, arXiv 2401.06121, section 2.2.2)."""
    return float(np.exp(min(score.mean, 0.0)))


def likelihoods(model: ScoresText, prompts: Sequence[Prompt]) -> list[float]:
    """How likely a model makes the right completion of each prompt, all of them scored in one call.

    Args:
        model: Any model that gives log-probabilities.
        prompts: The prompts.

    Returns:
        The right completion's `probability`, in [0, 1]; where the prompt offers options, its share of all the options'
        probabilities, whose chance level is `Prompt.chance`.
    """
    queries = [prompt.queries() for prompt in prompts]
    scores = iter(model.score([query for asked in queries for query in asked]))
    return [_share([next(scores) for _ in asked]) for asked in queries]


def _share(scores: Sequence[TextScore]) -> float:
    """The first completion's probability, or its share where there are others; by softmax, so that nothing underflows."""
    if len(scores) == 1:
        return probability(scores[0])
    means = np.array([score.mean for score in scores])
    return float(np.exp(means[0] - np.logaddexp.reduce(means)))


def answered(model: GeneratesText, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
    """What a model says to each prompt, greedily, all of them asked in one call.

    Args:
        model: Any model that completes text.
        prompts: The prompts.
        max_new_tokens: Where to stop.

    Returns:
        The new text of each.
    """
    return model.generate([prompt.queries()[0] for prompt in prompts], max_new_tokens)


def values(model: Model, prompts: Sequence[Prompt], max_new_tokens: int, *, scored: bool) -> list[float]:
    """How far each prompt brings its fact back, by what all models of the audit can do.

    Args:
        model: Any model of the audit.
        prompts: The prompts.
        max_new_tokens: Length of an answer.
        scored: Whether all models of the audit give log-probabilities; else generated answers are judged.

    Returns:
        `likelihoods`, or `hit` of each greedy answer.
    """
    if scored:
        assert isinstance(model, ScoresText)  # noqa: S101 - an attack asks only what every model of the audit can do
        return likelihoods(model, prompts)
    assert isinstance(model, GeneratesText)  # noqa: S101 - as above
    said = answered(model, prompts, max_new_tokens)
    return [hit(prompt, answer) for prompt, answer in zip(prompts, said, strict=True)]


def ways(model: Model, units: Sequence[Mapping[str, Any]], max_new_tokens: int, *, scored: bool) -> list[dict[str, Way]]:
    """Asks for every unit in every way, with all prompts in one call.

    Args:
        model: Any model of the audit.
        units: Prepared units; each holds `tries` and `controls`, both lists of dumped prompts by the way's name.
        max_new_tokens: Length of an answer.
        scored: As with `values`.

    Returns:
        How each way went, unit by unit.
    """
    flat = [
        (index, role, name, Prompt(**one))
        for index, unit in enumerate(units)
        for role in ("tries", "controls")
        for name, several in unit[role].items()
        for one in several
    ]
    rows = [{name: Way([], []) for name in unit["tries"]} for unit in units]
    found = values(model, [prompt for *_, prompt in flat], max_new_tokens, scored=scored)
    for (index, role, name, prompt), value in zip(flat, found, strict=True):
        if role == "controls":
            rows[index][name].guessed.append(value)
        else:
            rows[index][name].tries.append((value, prompt))
    return rows


def transcripts(model: Model, prompts: Sequence[Prompt], max_new_tokens: int) -> dict[str, Transcript]:
    """What a model says to one prompt a unit, as evidence.

    Args:
        model: A model that completes text.
        prompts: One prompt a unit.
        max_new_tokens: Length of an answer.

    Returns:
        The transcripts by unit.
    """
    assert isinstance(model, GeneratesText)  # noqa: S101 - an attack asks only what every model of the audit can do
    said = answered(model, prompts, max_new_tokens)
    return {
        prompt.unit: Transcript(prompt=prompt.text, expected=prompt.right.strip(), output=answer)
        for prompt, answer in zip(prompts, said, strict=True)
    }


def hit(prompt: Prompt, said: str) -> float:
    """Whether an answer gives the fact back: 1 if it names the fact and no other option, else 0."""
    return float(mentions(said, prompt.accepted) and not _names_any(said, prompt.wrong))


def _names_any(said: str, options: Iterable[str]) -> bool:
    return any(mentions(said, [option]) for option in options if normalised(option))
