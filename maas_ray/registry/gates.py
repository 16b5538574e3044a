"""Gates: what must hold of a version before an alias moves to it.

    f1 >= 0.9                                   a number
    f1 >= champion - 0.005                      what champion has in the same metric, plus or minus a number
    test/accuracy >= champion * 0.99            or times one
    validation/loss <= digits/3                 any version, also of another model

A metric's own name means the newest evaluation on another split than `train`. With a split before it, it means the
newest evaluation on that split, else what the training measured there. Two versions are compared on the same rows of
the same dataset, or not at all; a training may have measured only the first rows of a split. A gate fails closed: what
is missing, and numbers that cannot be compared, keep the alias where it is.
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from maas_ray.errors import GateError, NotFoundError, SpecError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.terminal.lines import say

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_GATE = re.compile(r"^\s*(?P<metric>[^\s<>=]+)\s*(?P<compare>>=|<=|>|<)\s*(?P<right>[^<>=]*[^<>=\s])\s*$")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_GRAMMAR = "METRIC >= NUMBER, or METRIC >= ALIAS, ALIAS - NUMBER, ALIAS + NUMBER or ALIAS * NUMBER; also <=, > and <"


@dataclass(frozen=True)
class Gate:
    """A parsed gate: `metric compare factor × reference + offset`; without a reference the offset alone."""

    text: str
    metric: str
    compare: str
    reference: str
    factor: float
    offset: float

    def bound(self, value: float) -> float:
        """What is compared with, given what the reference has."""
        return self.factor * value + self.offset

    def holds(self, value: float, bound: float) -> bool:
        """Whether the comparison holds; never of a NaN."""
        return _COMPARE[self.compare](value, bound)


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Raises:
        ValueError: it is none; says what one is.
    """
    found = _GATE.match(text)
    if not found:
        raise ValueError(f"{text!r} is no gate; write {_GRAMMAR}.")
    reference, factor, offset = "", 1.0, 0.0
    match found["right"].split():
        case [word] if (number := _number(word)) is not None:
            offset = number
        case [word]:
            reference = word
        case [word, "+" | "-" as sign, amount] if _number(word) is None and (number := _number(amount)) is not None:
            reference, offset = word, number if sign == "+" else -number
        case [word, "*", amount] if _number(word) is None and (number := _number(amount)) is not None:
            reference, factor = word, number
        case [amount, "*", word] if _number(word) is None and (number := _number(amount)) is not None:
            reference, factor = word, number
        case _:
            raise ValueError(
                f"{text!r}: {found['right']!r} is neither a number nor what a version has; write {_GRAMMAR}, with "
                "spaces around + - *."
            )
    return Gate(text.strip(), found["metric"], found["compare"], reference, factor, offset)


def _number(word: str) -> float | None:
    return float(word) if _NUMBER.fullmatch(word) else None


def _checked(text: str) -> str:
    parse_gate(text)
    return text


GateText = Annotated[str, AfterValidator(_checked)]
"""A gate as it is written."""


@dataclass(frozen=True)
class Verdict:
    """Whether a gate lets a version through, and the numbers that decided it."""

    gate: Gate
    passed: bool
    why: str

    def __str__(self) -> str:
        return f"gate {self.gate.text}: {'passed' if self.passed else 'NOT passed'}, {self.why}"


@dataclass(frozen=True)
class _Measured:
    """A metric of a version, and on which rows it was measured: the first `count` of a split; None: nobody knows."""

    value: float
    version: str
    dataset: str
    fingerprint: str
    split: str
    count: int | None
    by: str = ""

    @property
    def rows(self) -> str:
        """The rows in words."""
        count = "" if self.count is None else f", {self.count:,} rows"
        return f"{self.dataset}/{self.split}{count}{self.by}"

    def same_rows(self, other: "_Measured") -> bool:
        """Whether both were measured on the same rows; not where that is not known."""
        ours, theirs = ((one.fingerprint, one.split, one.count) for one in (self, other))
        return bool(self.fingerprint) and self.count is not None and ours == theirs


def judge(registry: Registry, version: ModelVersion, alias: str, gates: Iterable[str]) -> list[Verdict]:
    """What gates say of moving an alias to a version.

    Raises:
        SpecError: one of them is no gate.
    """
    try:
        parsed = [parse_gate(text) for text in gates]
    except ValueError as error:
        raise SpecError("gate", [str(error)]) from None
    return [_judged(registry, version, alias, gate) for gate in parsed]


def pass_gates(registry: Registry, version: ModelVersion, alias: str, gates: Iterable[str]) -> None:
    """Return if all gates let a version through to an alias; says what each had to say.

    Raises:
        SpecError: one of them is no gate.
        GateError: one does not let it through.
    """
    verdicts = judge(registry, version, alias, gates)
    failed = [str(verdict) for verdict in verdicts if not verdict.passed]
    for verdict in verdicts:
        if verdict.passed:
            say(str(verdict))
    if failed:
        raise GateError("\n".join([f"{version.name}@{alias} does not move to {version.reference}:", *failed]))


def _judged(registry: Registry, version: ModelVersion, alias: str, gate: Gate) -> Verdict:
    try:
        ours = _measured(version, gate.metric)
        if not gate.reference:
            return _compared(gate, version, ours, gate.offset, "")
        reference = gate.reference if {"@", "/"} & set(gate.reference) else f"{version.name}@{gate.reference}"
        if gate.reference == alias and not any(alias in other.aliases for other in registry.versions(version.name)):
            return Verdict(gate, True, f"no version is {alias} yet; {version.reference} has {ours.value:.6g}")
        other = registry.resolve(reference)
        theirs = _measured(other, gate.metric, like=ours)
        return _compared(gate, version, ours, gate.bound(theirs.value), f"{other.reference} has {theirs.value:.6g}")
    except (NotFoundError, SpecError) as error:
        hint = ""
        if re.search(r"[-+*][\d.]+$", gate.reference):
            hint = " Spaces stand around + - * in a gate."
        return Verdict(gate, False, f"{error}{hint}")


def _compared(gate: Gate, version: ModelVersion, ours: _Measured, bound: float, theirs: str) -> Verdict:
    against = f"{theirs}, which makes {bound:.6g}" if theirs and (gate.offset or gate.factor != 1) else theirs
    why = f"{version.reference} has {ours.value:.6g}" + (f", {against}" if against else "")
    return Verdict(gate, gate.holds(ours.value, bound), f"{why} ({ours.rows})")


def _measured(version: ModelVersion, metric: str, like: _Measured | None = None) -> _Measured:
    """A metric by its name in a gate; with `like`, on the very rows that another value was measured on.

    Raises:
        NotFoundError: it was not measured; says what was.
    """
    split, _, name = metric.rpartition("/")
    found = [
        _Measured(one.metrics[name], version.reference, one.dataset, one.fingerprint, one.split, one.rows)
        for one in version.evaluations
        if name in one.metrics and (one.split == split if split else one.split != "train")
    ]
    if split and metric in version.metrics:
        lineage = version.lineage
        rows = lineage.dataset, lineage.dataset_fingerprint, split, lineage.measured_rows.get(split)
        found.append(_Measured(version.metrics[metric], version.reference, *rows, by=", measured by the training"))
    if like is None:
        if found:
            return found[0]
        known = sorted({*version.metrics, *(f"{e.split}/{key}" for e in version.evaluations for key in e.metrics)})
        if split or not version.evaluations:
            missing = f"{version.reference} has no {metric}" + ("" if split else ", since it was never evaluated")
        else:
            missing = f"no evaluation of {version.reference} on validation or test has {metric}"
        raise NotFoundError(f"{missing}; it has: {', '.join(known) or 'none'}.")
    for one in found:
        if one.same_rows(like):
            return one
    on = f"{like.dataset or 'DATASET'} --split {like.split}"
    others = f" (but on {' and on '.join(one.rows for one in found)})" if found else ""
    raise NotFoundError(
        f"{version.reference} has no {metric} on the same rows ({like.rows}){others}; evaluate both versions on one "
        f"dataset: maas evaluate {like.version} {on}, and maas evaluate {version.reference} {on}."
    )
