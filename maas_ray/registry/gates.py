"""Gates: conditions on a version's metrics that decide whether an alias moves to it.

    f1 >= 0.9                                   a number
    f1 >= champion - 0.005                      the same metric of champion, plus or minus a number
    test/accuracy >= champion * 0.99            the same metric of champion, times a number
    validation/loss <= digits/3                 the same metric of any version, also of another model

A metric's bare name means the newest evaluation on any split but `train`. With a split before it, it means the newest
evaluation on that split, otherwise the training's own measurement there. Two versions are compared on the same rows of
the same dataset, or not at all: a training may have measured only the first rows of a split. A gate fails closed: if a
metric is missing, or numbers cannot be compared, the alias does not move.
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from maas_ray.errors import GateError, InvalidError, NotFoundError, SpecError
from maas_ray.registry.references import check_alias, parse_reference
from maas_ray.terminal.lines import say

if TYPE_CHECKING:  # every training worker parses gates, and has no registry
    from maas_ray.registry.versions import ModelVersion, Registry

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
        """The value to compare with, given the reference's value."""
        return self.factor * value + self.offset

    def holds(self, value: float, bound: float) -> bool:
        """True if the comparison holds. It never holds for a NaN."""
        return _COMPARE[self.compare](value, bound)


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Raises:
        InvalidError: it does not follow the grammar, which the message gives.
    """
    parts = _GATE.match(text)
    if not parts:
        raise InvalidError("gate_invalid", f"{text!r} is not a gate; write {_GRAMMAR}.")
    reference, factor, offset = "", 1.0, 0.0
    match parts["right"].split():
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
            raise InvalidError(
                "gate_invalid",
                f"{text!r}: {parts['right']!r} is neither a number nor a version's metric; write {_GRAMMAR}, with "
                "spaces around + - *.",
            )
    if reference:
        _check_reference(text, reference)
    return Gate(text.strip(), parts["metric"], parts["compare"], reference, factor, offset)


def _check_reference(text: str, reference: str) -> None:
    """Refuse a reference that no version can have."""
    try:
        parse_reference(reference) if {"@", "/"} & set(reference) else check_alias(reference)
    except SpecError as error:
        hint = " Write spaces around + - * in a gate." if re.search(r"[-+*][\d.]+$", reference) else ""
        raise InvalidError(error.code, f"{text!r}: {'; '.join(error.problems)}{hint}") from None


def _number(word: str) -> float | None:
    return float(word) if _NUMBER.fullmatch(word) else None


def _checked(text: str) -> str:
    parse_gate(text)
    return text


GateText = Annotated[str, AfterValidator(_checked)]
"""A gate as it is written."""


@dataclass(frozen=True)
class Verdict:
    """The result of a gate for a version, with the numbers that decided it."""

    gate: Gate
    passed: bool
    why: str
    code: str = ""
    """Why a metric cannot be compared: the code of the error. Empty: it was compared."""

    def __str__(self) -> str:
        return f"gate {self.gate.text}: {'passed' if self.passed else 'NOT passed'}, {self.why}"


@dataclass(frozen=True)
class _Measured:
    """A metric of a version and the rows it was measured on.

    Args:
        value: the metric.
        version: `name/number`.
        dataset, fingerprint, split: where the rows are.
        count: number of rows, the first ones of the split. None: unknown.
        by: who measured it, in words. Empty: an evaluation.
    """

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
        """True if both were measured on the same rows; False if that is unknown."""
        ours, theirs = ((rows.fingerprint, rows.split, rows.count) for rows in (self, other))
        return bool(self.fingerprint) and self.count is not None and ours == theirs


def judge(registry: "Registry", version: "ModelVersion", alias: str, gates: Iterable[str]) -> list[Verdict]:
    """A verdict of each gate on moving an alias to a version.

    Raises:
        SpecError: a gate does not follow the grammar.
    """
    try:
        parsed = [parse_gate(text) for text in gates]
    except InvalidError as error:
        raise SpecError("gate", [str(error)], code=error.code) from None
    return [_judged(registry, version, alias, gate) for gate in parsed]


def pass_gates(registry: "Registry", version: "ModelVersion", alias: str, gates: Iterable[str]) -> None:
    """Return if all gates pass; prints a line for each gate that passes.

    Raises:
        SpecError: a gate does not follow the grammar.
        GateError: a gate does not pass.
    """
    verdicts = judge(registry, version, alias, gates)
    failed = [str(verdict) for verdict in verdicts if not verdict.passed]
    for verdict in verdicts:
        if verdict.passed:
            say(str(verdict))
    if failed:
        raise GateError("\n".join([f"{version.name}@{alias} does not move to {version.reference}:", *failed]))


def _judged(registry: "Registry", version: "ModelVersion", alias: str, gate: Gate) -> Verdict:
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
            hint = " Write spaces around + - * in a gate."
        return Verdict(gate, False, f"{error}{hint}", error.code or "")


def _compared(gate: Gate, version: "ModelVersion", ours: _Measured, bound: float, theirs: str) -> Verdict:
    against = f"{theirs}, which makes {bound:.6g}" if theirs and (gate.offset or gate.factor != 1) else theirs
    why = f"{version.reference} has {ours.value:.6g}" + (f", {against}" if against else "")
    return Verdict(gate, gate.holds(ours.value, bound), f"{why} ({ours.rows})")


def _measured(version: "ModelVersion", metric: str, like: _Measured | None = None) -> _Measured:
    """A metric by its name in a gate.

    Args:
        version: the version that has it.
        metric: its name, with or without a split before it.
        like: another value; the metric must be measured on the same rows. None: on any rows.

    Raises:
        NotFoundError: it was not measured. The message names the metrics that were.
    """
    split, _, name = metric.rpartition("/")
    measured = [
        _Measured(e.metrics[name], version.reference, e.dataset, e.fingerprint, e.split, e.rows)
        for e in version.evaluations
        if name in e.metrics and (e.split == split if split else e.split != "train")
    ]
    if split and metric in version.metrics:
        lineage = version.lineage
        rows = lineage.dataset, lineage.dataset_fingerprint, split, lineage.measured_rows.get(split)
        measured.append(_Measured(version.metrics[metric], version.reference, *rows, by=", measured by the training"))
    if like is None:
        if measured:
            return measured[0]
        known = sorted({*version.metrics, *(f"{e.split}/{key}" for e in version.evaluations for key in e.metrics)})
        if split or not version.evaluations:
            missing = f"{version.reference} has no {metric}" + ("" if split else ", since it was never evaluated")
        else:
            missing = f"no evaluation of {version.reference} on validation or test has {metric}"
        raise NotFoundError(f"{missing}; it has: {', '.join(known) or 'none'}.", code="metric_missing")
    for candidate in measured:
        if candidate.same_rows(like):
            return candidate
    on = f"{like.dataset or 'DATASET'} --split {like.split}"
    others = f" (but on {' and on '.join(candidate.rows for candidate in measured)})" if measured else ""
    raise NotFoundError(
        f"{version.reference} has no {metric} on the same rows ({like.rows}){others}; evaluate both versions on one "
        f"dataset: maas evaluate {like.version} {on}, and maas evaluate {version.reference} {on}.",
        code="metric_on_other_rows",
    )
