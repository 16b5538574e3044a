"""The step `pii`: replace personal data with its type: `anna@web.de` → `<EMAIL_ADDRESS>`.

    text ─▶ its copy in ASCII signs ─▶ lines with an @, or with enough digits ─▶ patterns ─▶ check digits ─▶ tokens

A quick search over the whole text finds the lines that could contain personal data; expensive checks run on these only.
Names of people and places are not recognised, because that needs a model.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import AfterValidator, Field

from maas_ray.data.cleaning.base import Notes
from maas_ray.data.cleaning.base.text import TextMapper
from maas_ray.data.cleaning.pii import addresses, numbers, phones, secrets
from maas_ray.data.cleaning.pii.candidates import Candidates
from maas_ray.data.cleaning.pii.characters import searchable
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row

Entity = Literal["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "NATIONAL_ID", "SECRET"]
Country = Literal["US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "BR", "IN", "CN", "CA", "AU"]

# Every number that is searched for has six digits or more, close together, except short IP addresses.
_DIGITS = 6
# In some small regions a phone number has no more. They are searched for only if the spec names such a region.
_FEW_DIGITS = 4


def _region(region: str) -> str:
    from phonenumbers import SUPPORTED_REGIONS

    if region not in SUPPORTED_REGIONS:
        raise InvalidError(
            "unknown_region", f"{region!r} is not a region with a numbering plan; use two letters of ISO 3166: US."
        )
    return region


class Pii(TextMapper):
    """`{step: pii}`"""

    step: Literal["pii"] = "pii"
    """Name of the step."""
    entities: tuple[Entity, ...] = Field(get_args(Entity), min_length=1)
    """Kinds of personal data to replace."""
    countries: tuple[Country, ...] = Field(get_args(Country), min_length=1)
    """Countries whose national ids are replaced, by ISO 3166."""
    phone_regions: tuple[Annotated[str, AfterValidator(_region)], ...] = ("US",)
    """Regions whose phone numbers are recognised without `+` and country code, by ISO 3166, in order of precedence."""
    private_ips: bool = False
    """Replace addresses of private networks (10.0.0.1) too."""

    def clean(self, row: Row, notes: Notes) -> Row:
        return self.mapped(row, lambda text: self._redacted(text, notes))

    def _redacted(self, text: str, notes: Notes) -> str:
        """The text after replacing until nothing is found, because one replacement may uncover the next."""
        copy = searchable(text)
        spans = self._disjoint(self._spans(copy.text))
        if not spans:
            return text
        parts, last, length = [], 0, 0
        replaced = []  # start of each type in the new text
        for first, end, name in spans:
            start, stop = copy.original(first, end)
            length += start - last
            replaced.append(length)
            parts += [text[last:start], f"<{name}>"]
            length += len(name) + 2
            last = stop
            notes[name] += 1
        text = "".join([*parts, text[last:]])
        parts, last = [], 0
        for start, end in _neighbours(text, replaced):  # nothing changed elsewhere
            parts += [text[last:start], self._redacted(text[start:end], notes)]
            last = end
        return "".join([*parts, text[last:]])

    @staticmethod
    def _disjoint(spans: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        """Spans without overlaps: the first span wins, and the longest of those with the same start."""
        disjoint: list[tuple[int, int, str]] = []
        for span in sorted(spans, key=lambda span: (span[0], -span[1])):
            if not disjoint or span[0] >= disjoint[-1][1]:
                disjoint.append(span)
        return disjoint

    def _spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        candidates = Candidates(text)
        if "SECRET" in self.entities:
            yield from _secrets(candidates)
        if "EMAIL_ADDRESS" in self.entities:
            for start, end in _lines(text, addresses.at_signs(text)):
                for span in addresses.email_addresses(text, start, end):
                    yield *span, "EMAIL_ADDRESS"
        if "IP_ADDRESS" in self.entities:
            for start, end in chain(candidates.lines(candidates.points), _lines(text, addresses.COLONS)):
                for span in addresses.ip_addresses(text, start, end, private=self.private_ips):
                    yield *span, "IP_ADDRESS"
        if "IBAN_CODE" in self.entities:
            for span in numbers.ibans(text, candidates.check_digits.tolist()):
                yield *span, "IBAN_CODE"
        if {"CREDIT_CARD", "NATIONAL_ID", "PHONE_NUMBER"}.intersection(self.entities):
            few = "PHONE_NUMBER" in self.entities and self._phone_digits < 6
            for start, end in candidates.lines(candidates.numbers(_FEW_DIGITS if few else _DIGITS)):
                yield from self._numbers(text, start, end)

    @cached_property
    def _phone_digits(self) -> int:
        """Digits of the shortest phone numbers."""
        from phonenumbers import PhoneNumberFormat, PhoneNumberType, example_number_for_type, format_number

        kinds = (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE)
        examples = [example_number_for_type(region, kind) for region in self.phone_regions for kind in kinds]
        written = [format_number(example, PhoneNumberFormat.NATIONAL) for example in examples if example]
        return min(7, *(sum(map(str.isdigit, number)) for number in written))

    def _numbers(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        """Spans of numbers. Kinds with stricter checks come first, since the first of two equal spans wins."""
        if "CREDIT_CARD" in self.entities:
            for span in numbers.credit_cards(text, start, end):
                yield *span, "CREDIT_CARD"
        if "NATIONAL_ID" in self.entities:
            yield from numbers.national_ids(text, start, end, self.countries)
        if "PHONE_NUMBER" in self.entities:
            for span in phones.phone_numbers(
                text, start, end, regions=self.phone_regions, min_digits=self._phone_digits
            ):
                yield *span, "PHONE_NUMBER"


def _secrets(candidates: Candidates) -> Iterator[tuple[int, int, str]]:
    text = candidates.text
    for span in secrets.private_keys(text):
        yield *span, "PRIVATE_KEY"
    for start, end in chain(*(_lines(text, word) for word in secrets.NAMES if word.pattern in text)):
        for span in secrets.aws_secret_keys(text, start, end):
            yield *span, "API_KEY"
    likely = np.array([start for start, end in candidates.runs() if secrets.may_be_key(text, start, end)], np.int64)
    for start, end in chain(candidates.lines(likely), *(_lines(text, pattern) for pattern in secrets.likely(text))):
        for span in secrets.api_keys(text, start, end):
            yield *span, "API_KEY"


def _neighbours(text: str, replaced: list[int]) -> Iterator[tuple[int, int]]:
    """Start and end of the stretches of lines in which, or beside which, something was replaced."""
    first = last = -1
    for position in replaced:
        start = text.rfind("\n", 0, max(text.rfind("\n", 0, position), 0)) + 1
        end = text.find("\n", position)
        end = text.find("\n", end + 1) if end >= 0 else end
        end = len(text) if end < 0 else end
        if start <= last:
            last = max(last, end)
            continue
        if last >= 0:
            yield first, last
        first, last = start, end
    yield first, last


def _lines(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each line of a text that contains a pattern."""
    position = 0
    while match := pattern.search(text, position):
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        position = len(text) if end < 0 else end
        yield start, position
