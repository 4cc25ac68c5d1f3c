"""What asking the models behind endpoints took."""

from muaudit.frozen import Frozen


class Usage(Frozen):
    """What was asked of an endpoint.

    Attributes:
        requests: Requests sent, retries included.
        retries: Of these, requests that were sent again after a failure.
        failures: Of these, requests that brought no usable answer.
        answers: Of these, requests that did; each is kept.
        reused: Answers that were taken from the store instead of being asked for.
        prompt_tokens: As the server counts them; 0 for an answer without a count.
        completion_tokens: The same, of what it generated.
        unmetered: Answers that came without a count, so that tokens and cost are too low.
        cost: Tokens times the configured prices, in their currency; None without prices.
    """

    requests: int
    retries: int
    failures: int
    answers: int
    reused: int
    prompt_tokens: int
    completion_tokens: int
    unmetered: int
    cost: float | None


class Ledger(Frozen):
    """What asking one endpoint took.

    Attributes:
        role: The model's role; several where they are one endpoint.
        endpoint: Its model's name and its address.
        run: In this run.
        total: In all runs that shared this store, interrupted ones included.
        served: The names and fingerprints under which the server said that it answered; more than one is a sign of change.
    """

    role: str
    endpoint: str
    run: Usage
    total: Usage
    served: tuple[str, ...] = ()
