"""The step `pii`: replace personal data with its type: `anna@web.de` → `<EMAIL_ADDRESS>`.

    text ─▶ lines with an @, or with enough digits ─▶ patterns ─▶ check digits, numbering plans ─▶ tokens

A search over the whole text finds the lines that could contain personal data; expensive checks run on these lines only.
Names of people and places are not recognised, because that needs a model.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from maas_ray.data.cleaning.base import Notes
from maas_ray.data.cleaning.base.text import TextMapper
from maas_ray.data.cleaning.pii import patterns
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row

Entity = Literal["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "NATIONAL_ID"]
Country = Literal["US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "BR", "IN", "CN"]

# Six digits or more, close together: every number that is searched for has them, except short IP addresses.
_DIGITS = re.compile(r"[0-9](?:[^0-9\n]{0,3}[0-9]){5}")
_POINTS = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_AT = re.compile("@")


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
        while spans := self._disjoint(self._spans(text)):
            parts, last = [], 0
            for start, end, name in spans:
                parts += [text[last:start], f"<{name}>"]
                last = end
                notes[name] += 1
            text = "".join([*parts, text[last:]])
        return text

    @staticmethod
    def _disjoint(spans: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        """Spans without overlaps: the first span wins, and the longest of those with the same start."""
        disjoint: list[tuple[int, int, str]] = []
        for span in sorted(spans, key=lambda span: (span[0], -span[1])):
            if not disjoint or span[0] >= disjoint[-1][1]:
                disjoint.append(span)
        return disjoint

    def _spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        if "EMAIL_ADDRESS" in self.entities and "@" in text:
            for start, end in _lines(text, _AT):
                for span in patterns.email_addresses(text, start, end):
                    yield *span, "EMAIL_ADDRESS"
        if "IP_ADDRESS" in self.entities:
            for pattern in (_POINTS, _COLONS):
                for start, end in _lines(text, pattern):
                    for span in patterns.ip_addresses(text, start, end, private=self.private_ips):
                        yield *span, "IP_ADDRESS"
        if {"CREDIT_CARD", "IBAN_CODE", "NATIONAL_ID", "PHONE_NUMBER"}.intersection(self.entities):
            for start, end in _lines(text, _DIGITS):
                yield from self._numbers(text, start, end)

    def _numbers(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        """Spans of numbers. Kinds with stricter checks come first, since the first of two equal spans wins."""
        if "IBAN_CODE" in self.entities:
            for span in patterns.ibans(text, start, end):
                yield *span, "IBAN_CODE"
        if "CREDIT_CARD" in self.entities:
            for span in patterns.credit_cards(text, start, end):
                yield *span, "CREDIT_CARD"
        if "NATIONAL_ID" in self.entities:
            for kind in patterns.NATIONAL_IDS:
                if kind.country in self.countries:
                    for span in kind.find(text, start, end):
                        yield *span, kind.name
        if "PHONE_NUMBER" in self.entities:
            for span in patterns.phone_numbers(text, start, end, regions=self.phone_regions):
                yield *span, "PHONE_NUMBER"


def _lines(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each line of a text that contains a pattern."""
    position = 0
    while match := pattern.search(text, position):
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        position = len(text) if end < 0 else end
        yield start, position
