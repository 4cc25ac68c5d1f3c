"""What an audit may take: hours, queries and money, counted over all its runs, and what happens to an attack that does not fit.

An attack is measured on every model or on none, so under a budget the attacks run one after another in the plan's order, and
what is left is shared out equally among the models that the next attack is to be measured on: all are treated alike, so all
cost alike. A model that would take more than its share ends the attack, which is then skipped; what was spent stays spent.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from muaudit import plan, store
from muaudit.config import BudgetConfig
from muaudit.errors import NotApplicable
from muaudit.model_config import EndpointConfig, ModelConfig
from muaudit.models import Model
from muaudit.models.meter import Meter, folder_of
from muaudit.plan import Plan
from muaudit.results import Frozen, Spent

T = TypeVar("T")

ASKED = ("generate", "score", "score_tokens", "logits", "logits_of", "predictions", "member_logits", "images")
"""Ways of asking a model; what copies are asked that an attack trains or rounds counts as time alone."""

_CHUNK = 16
"""Questions after which an endpoint's cost is looked at again."""

_HOUR = 3600.0


class OverBudget(NotApplicable):
    """What was asked for does not fit into the budget."""


@dataclass(frozen=True)
class Allowance:
    """What one attack on one model may take; None for any amount.

    Attributes:
        queries: Questions.
        money: Cost, of an endpoint.
        seconds: Seconds from when it starts.
    """

    queries: int | None = None
    money: float | None = None
    seconds: float | None = None


class Used:
    """What was taken so far of an allowance.

    Attributes:
        allowance: What may be taken; None for anything, and then nothing is counted.
        local: Questions to a model that is no endpoint.
        inside: Whether one is being asked: what a model asks of itself is not counted again.
    """

    def __init__(self, allowance: Allowance | None, settings: ModelConfig, kept: Path) -> None:
        """Starts to count.

        Args:
            allowance: What may be taken.
            settings: The model's table in audit.toml.
            kept: The audit's store, where an endpoint is metered.
        """
        self.allowance, self.local, self.inside = allowance, 0, False
        self._endpoint = settings if isinstance(settings, EndpointConfig) and allowance is not None else None
        self._meter = None if self._endpoint is None else Meter(folder_of(self._endpoint, kept))
        self._before = {} if self._meter is None else self._meter.read()
        self._start = time.monotonic()

    @property
    def queries(self) -> int:
        """Questions so far: of an endpoint, requests that were sent."""
        return self.local if self._meter is None else self._meter.read()["requests"] - self._before["requests"]

    @property
    def money(self) -> float:
        """What they cost."""
        return 0.0 if self._meter is None else cost(self._meter.read(), self._before, self._endpoint)

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Counts what a model is asked, while it lasts.

        Args:
            model: The model; as it was, afterwards.

        Yields:
            Nothing.

        Raises:
            OverBudget: At the first question that does not fit.
        """
        if self.allowance is None:
            yield
            return
        self.admit(0)
        names = [name for name in ASKED if callable(getattr(model, name, None))]
        for name in names:
            setattr(model, name, _counted(getattr(model, name), self, _CHUNK if self._endpoint is not None else None))
        try:
            yield
        finally:
            for name in names:
                delattr(model, name)

    def admit(self, more: int) -> None:
        """Lets so many further questions be asked.

        Raises:
            OverBudget: They do not fit.
        """
        allowed = self.allowance or Allowance()
        if allowed.queries is not None and self.queries + more > allowed.queries:
            raise OverBudget(f"it takes more than the {allowed.queries} queries a model that the budget leaves it")
        if allowed.money is not None and self.money >= allowed.money:
            raise OverBudget(f"it costs more than the {allowed.money:.4g} a model that the budget leaves it")
        if allowed.seconds is not None and time.monotonic() - self._start >= allowed.seconds:
            raise OverBudget("the budget's hours are over")


def _counted(ask: Callable[..., Any], used: Used, step: int | None) -> Callable[..., Any]:
    """A way of asking that counts first; one that another one uses is not counted again."""

    @wraps(ask)
    def counted(questions: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the model is asked
        if used.inside:
            return ask(questions, *args, **kwargs)
        used.inside = True
        try:
            if step is None:
                used.admit(len(questions))  # before they are asked
                used.local += len(questions)
                return ask(questions, *args, **kwargs)
            answers = []
            for start in range(0, len(questions), step):
                used.admit(len(questions[start : start + step]))
                answers += ask(questions[start : start + step], *args, **kwargs)
            return answers
        finally:
            used.inside = False

    return counted


def cost(now: dict[str, int], before: dict[str, int], prices: EndpointConfig | None) -> float:
    """What an endpoint's tokens cost between two readings of its meter; 0 without prices."""
    if prices is None or prices.price_per_million_input is None or prices.price_per_million_output is None:
        return 0.0
    tokens = {name: now[name] - before.get(name, 0) for name in ("prompt_tokens", "completion_tokens")}
    dear = tokens["completion_tokens"] * prices.price_per_million_output
    return (tokens["prompt_tokens"] * prices.price_per_million_input + dear) / 1e6


class _Refused(Frozen):
    """An attack that did not fit, and what was left before it was tried."""

    reason: str
    left: dict[str, float]


class _Book(Frozen):
    """What stands in the account's file."""

    seconds: float = 0.0
    queries: int = 0
    meters: dict[str, dict[str, int]] = {}
    refused: dict[str, _Refused] = {}
    done: tuple[str, ...] = ()
    reserved: dict[str, float] = {}


class Account:
    """What one plan has taken so far, over all its runs.

    Attributes:
        budget: What it may take.
    """

    def __init__(self, frozen: Plan, base: Path) -> None:
        """Reads what earlier runs have taken.

        Args:
            frozen: The plan; what another budget of the same plan has taken counts too.
            base: The folder that its paths start from.
        """
        self.budget, self._kept = frozen.config.budget, plan.store_folder(frozen.config, base)
        self._endpoints = {
            folder_of(model, self._kept).name: model
            for planned in (frozen, *(step.plan for step in frozen.steps))
            for _, model in planned.config.models()
            if isinstance(model, EndpointConfig)
        }
        whatever = frozen.config.model_copy(update={"budget": BudgetConfig()})
        self._path = self._kept / "spent" / f"{frozen.model_copy(update={'config': whatever}).content_digest()}.json"
        self._book, self._start = self._read(), time.monotonic()
        unread = {name: self._meter(one).read() for name, one in self._endpoints.items() if name not in self._book.meters}
        self._book = self._book.model_copy(update={"meters": {**self._book.meters, **unread}})
        if self.limited:
            self._save()

    def _read(self) -> _Book:
        try:
            return _Book.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return _Book()

    def _meter(self, settings: EndpointConfig) -> Meter:
        return Meter(folder_of(settings, self._kept))

    @property
    def limited(self) -> bool:
        """Whether there is a budget at all."""
        return self.budget != BudgetConfig()

    @property
    def seconds(self) -> float:
        """Seconds of scanning so far."""
        return self._book.seconds + time.monotonic() - self._start

    @property
    def queries(self) -> int:
        """Questions so far."""
        sent = sum(
            self._meter(one).read()["requests"] - self._book.meters[name]["requests"] for name, one in self._endpoints.items()
        )
        return self._book.queries + sent

    @property
    def money(self) -> float:
        """What endpoints cost so far."""
        return sum(cost(self._meter(one).read(), self._book.meters[name], one) for name, one in self._endpoints.items())

    def spent(self) -> Spent:
        """All of it, for the report."""
        money = round(self.money, 6) if self.budget.money is not None else None
        return Spent(hours=round(self.seconds / _HOUR, 4), queries=self.queries, money=money)

    def batches(self, attacks: Sequence[T]) -> list[Sequence[T]]:
        """The attacks in the order and groups in which they are run: all at once, or one by one under a budget."""
        return [[one] for one in attacks] if self.limited else [attacks]

    def share(self, models: Sequence[ModelConfig]) -> list[Allowance | None]:
        """What is left, shared out among the models that are asked next; None for each where there is no budget.

        Args:
            models: The models.
        """
        if not self.limited:
            return [None] * len(models)
        asked = sum(isinstance(model, EndpointConfig) for model in models)
        left = self.left()
        queries = int(left["queries"]) // max(1, len(models)) if "queries" in left else None
        money = left["money"] / max(1, asked) if "money" in left else None
        return [Allowance(queries, money if isinstance(model, EndpointConfig) else None) for model in models]

    def timed(self, share: Allowance | None) -> Allowance | None:
        """A share, as it is given out now: time passes whoever is measured."""
        if share is None or self.budget.hours is None:
            return share
        return replace(share, seconds=max(0.0, self.budget.hours * _HOUR - self.seconds))

    def left(self) -> dict[str, float]:
        """What is left of everything that is limited, by the budget's keys; 0 or more."""
        had = {"hours": self.budget.hours, "queries": self.budget.queries, "money": self.budget.money}
        took = {"hours": self.seconds / _HOUR, "queries": self.queries, "money": self.money}
        kept = self._book.reserved
        return {what: max(0.0, limit - took[what] - kept.get(what, 0.0)) for what, limit in had.items() if limit is not None}

    @contextmanager
    def reserving(self) -> Iterator[None]:
        """Keeps back as much as is taken inside, until it is released: for what is certain to be done once more."""
        before = {"queries": float(self.queries), "money": self.money}
        yield
        more = {"queries": self.queries - before["queries"], "money": self.money - before["money"]}
        if any(more.values()):
            kept = {what: self._book.reserved.get(what, 0.0) + value for what, value in more.items()}
            self._book = self._book.model_copy(update={"reserved": kept})
            self.took(0)

    def release(self) -> None:
        """Gives free what was kept back."""
        self._book = self._book.model_copy(update={"reserved": {}})

    def refusal(self, attack: str) -> str | None:
        """Why an attack is not tried: nothing is left, or it did not fit before, and no more is left now than then.

        Args:
            attack: Its name in the plan, with its step's in a series.

        Returns:
            The reason; None where it is tried.
        """
        if attack in self._book.done:
            return None
        left = self.left()
        if spent := [f"{what} = {getattr(self.budget, what):g}" for what, rest in left.items() if rest <= 0]:
            return f"the budget is spent ({', '.join(spent)})"
        before = self._book.refused.get(attack)
        if before is None or before.left.keys() != left.keys() or any(left[what] > before.left[what] for what in left):
            return None
        return before.reason

    def refuse(self, attack: str, reason: str, left: dict[str, float]) -> None:
        """Remembers that an attack did not fit, so that no later run spends anything on trying it again.

        Args:
            attack: Its name.
            reason: Why.
            left: What was left before it was tried, as `left` told.
        """
        self._book = self._book.model_copy(
            update={"refused": self._book.refused | {attack: _Refused(reason=reason, left=left)}}
        )
        self._save()

    def finish(self, attack: str) -> None:
        """Remembers that an attack was measured on every model: to look that up again costs nothing."""
        if self.limited and attack not in self._book.done:
            self._book = self._book.model_copy(update={"done": (*self._book.done, attack)})
            self._save()

    def took(self, queries: int) -> None:
        """Counts what was asked of models that are no endpoints, and the time; on disk, so that it stays counted.

        Args:
            queries: Questions.
        """
        self._book = self._book.model_copy(update={"queries": self._book.queries + queries})
        if self.limited:
            self._save()

    def _save(self) -> None:
        now = time.monotonic()
        self._book = self._book.model_copy(update={"seconds": self._book.seconds + now - self._start})
        self._start = now
        store.write_atomically(self._path, self._book.canonical())
