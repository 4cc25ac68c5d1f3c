"""Quantization: does rounding the weights bring back what unlearning hid below the rounding step?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.models import Model, Quantizes
from muaudit.registry import Broken, find

Bits = Literal[4, 8]


class Quantization(Attack):
    """Runs other attacks again on copies with rounded weights, of the target and of every reference alike.

    Unlearning that must keep a model's utility moves its weights little; rounding to few levels may move them back. The weights
    of all linear layers are rounded and used in the model's own dtype; embeddings, output head, norms, biases and activations
    stay. The schemes are fixed: 8 bits are LLM.int8()'s symmetric steps, scaled by the largest magnitude of each output row,
    and 4 bits are QLoRA's NormalFloat (nf4), scaled by the largest magnitude of each block of 64, scales not rounded. The study
    took its library's default, which for 4 bits is another level table (fp4).

    The leakage of a forget unit is the largest over attacks and precisions, since an attacker takes the best; that of a retain
    unit is the mean. Each attack stands at each precision beside it, at full precision too: what rounding alone brings back
    is the difference.

    Attributes:
        attacks: The attacks to run, each with its parameters; one that the models do not allow is left out, with a note.
        bits: Precisions, 8 or 4 bits a weight.
    """

    name: ClassVar = "quantization"
    version: ClassVar = "1"
    summary: ClassVar = "Rounds the weights to 8 and 4 bits and attacks again."
    source: ClassVar = (
        "Zhang et al. 2024 (arXiv 2410.16454); 8 bits: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339); "
        "4 bits: NF4 of QLoRA (Dettmers et al. 2023, arXiv 2305.14314)"
    )
    access: ClassVar = "weights"
    needs: ClassVar = (Quantizes,)
    cost: ClassVar = "the attacks once more for each precision, and once at full precision"
    informational: ClassVar = (
        "It finds what is hidden below the rounding step, and else what memorization finds: measured AUC .86."
    )

    attacks: dict[str, dict[str, Any]] = {"memorization": {"retain_clusters": 10, "max_new_tokens": 16}}
    bits: Annotated[tuple[Bits, ...], Field(min_length=1)] = (8, 4)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.attacks or len(set(self.bits)) != len(self.bits):
            raise ValueError("name at least one attack, and each precision once")
        self._inner()
        return self

    def _inner(self) -> dict[str, Attack]:
        """The attacks, with their parameters."""
        inner = {}
        for name, parameters in self.attacks.items():
            found = find(name)
            if isinstance(found, Broken):
                raise ValueError(found.reason)
            if issubclass(found.attack, Quantization):
                raise ValueError("quantization cannot run itself; name other attacks")
            try:
                inner[name] = found.attack.model_validate(parameters)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise ValueError(f"{'.'.join([name, *map(str, first['loc'])])}: {first['msg']}") from error
        return inner

    def files(self) -> tuple[str, ...]:
        """The files that the attacks name."""
        return tuple(path for attack in self._inner().values() for path in attack.files())

    def prepare(self, bench: Bench) -> Prepared:
        """Prepares every attack, each from the same seed, so that they draw the same retain clusters."""
        seed = int(bench.rng.integers(2**31))
        prepared, notes = {}, []
        for name, attack in self._inner().items():
            try:
                _refuse_unfit(attack, bench.capabilities)
                own = replace(bench, rng=np.random.default_rng(seed), open_calibration=None)
                prepared[name] = attack.prepare(own).data
            except NotApplicable as reason:
                notes.append(f"{name} not run on rounded weights: {reason}")
        if not prepared:
            raise NotApplicable("; ".join(notes))
        return Prepared(data={"attacks": prepared, "notes": notes, "seed": seed})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Runs every attack at every precision; each starts from the same seed."""
        assert isinstance(model, Quantizes)  # noqa: S101 - the runner checked `needs`
        inner = self._inner()
        seed = int(rng.integers(2**31))
        runs: dict[str, list[tuple[str, Measurement]]] = {}
        for bits in (None, *self.bits):
            copied = model if bits is None else model.quantized(bits)
            precision = "full_precision" if bits is None else f"{bits}_bit"
            for name, data in prepared.data["attacks"].items():
                seen = inner[name].measure(copied, Prepared(data=data), np.random.default_rng(seed))
                runs.setdefault(precision, []).append((name, seen))
        return _together(runs, prepared.data["notes"])


def _refuse_unfit(attack: Attack, capabilities: frozenset[str]) -> None:
    """Refuses an attack that the models' capabilities, or a bench of rounded models, cannot serve."""
    for need in attack.needs:
        names = [one.__name__ for one in (need if isinstance(need, tuple) else (need,))]
        if not capabilities.intersection(names):
            raise NotApplicable(f"a model of this audit lacks {' or '.join(names)}")
    if attack.reads_original or attack.calibrates:
        raise NotApplicable("it reads the original or a reference of its own, which would have to be rounded too")


def _together(runs: Mapping[str, Sequence[tuple[str, Measurement]]], notes: Sequence[str]) -> Measurement:
    """One measurement of all runs: those of rounded weights decide, the full precision stands beside them."""
    measured = [seen for run in runs.values() for _, seen in run]
    common = set.intersection(*(set(seen.units) for seen in measured))
    first = measured[0]
    places = [index for index, unit in enumerate(first.units) if unit in common]
    if not places:
        raise NotApplicable("the attacks score no unit in common, so they cannot be put together; run them one by one")
    every = {unit for seen in measured for unit in seen.units}
    left = [f"{len(every) - len(common)} units are left out, since not every attack scores them"] if every - common else []
    units = [first.units[index] for index in places]
    sets = [first.sets[index] for index in places]
    columns = {f"{name}_{precision}": _column(seen, units) for precision, run in runs.items() for name, seen in run}
    rounded = [name for name in columns if not name.endswith("full_precision")]
    leaks = np.array([columns[name] for name in rounded])
    best = leaks.argmax(0)
    seen_by = {f"{name}_{precision}": seen for precision, run in runs.items() for name, seen in run}
    transcripts = {
        unit: said
        for unit, way in zip(units, best.tolist(), strict=True)
        if (said := seen_by[rounded[way]].transcripts.get(unit)) is not None
    }
    return Measurement(
        units=tuple(units),
        clusters=tuple(first.clusters[index] for index in places),
        sets=tuple(sets),
        leakage=tuple(np.where(np.array(sets) == "forget", leaks.max(0), leaks.mean(0)).tolist()),
        scores={name: tuple(column) for name, column in columns.items()},
        facets={"precision": tuple(columns)},
        transcripts=transcripts,
        summaries={f"{name}: {what}": value for name, seen in seen_by.items() for what, value in seen.summaries.items()},
        powerless=next((seen.powerless for seen in measured if seen.powerless), None),
        notes=tuple(dict.fromkeys([*notes, *left, *(note for seen in measured for note in seen.notes)])),
    )


def _column(seen: Measurement, units: Sequence[str]) -> list[float]:
    by_unit = dict(zip(seen.units, seen.leakage, strict=True))
    return [by_unit[unit] for unit in units]
