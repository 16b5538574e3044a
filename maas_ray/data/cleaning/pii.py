"""`pii`: personal data becomes what it was: `anna@web.de` → `<EMAIL_ADDRESS>`.

    text ─▶ lines with an @, or with enough digits ─▶ patterns ─▶ check digits, numbering plans ─▶ tokens

A look at the whole text finds the lines that could have any; what is dear is done there alone. Names of people and
places are none of its affair: they need a model.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from maas_ray.data.cleaning import pii_kinds
from maas_ray.data.cleaning.base import Notes
from maas_ray.data.cleaning.texts import TextMapper
from maas_ray.tasks.rows import Row

Entity = Literal["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "NATIONAL_ID"]
Country = Literal["US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "BR", "IN", "CN"]

# Six digits or more, not far apart: every number that is looked for has them, but short IP addresses.
_DIGITS = re.compile(r"[0-9](?:[^0-9\n]{0,3}[0-9]){5}")
_POINTS = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_AT = re.compile("@")


def _region(region: str) -> str:
    from phonenumbers import SUPPORTED_REGIONS

    if region not in SUPPORTED_REGIONS:
        raise ValueError(f"{region!r} is no region with a numbering plan; give ISO 3166's two letters, such as US.")
    return region


class Pii(TextMapper):
    """`{step: pii}`"""

    step: Literal["pii"] = "pii"
    """Which step."""
    entities: tuple[Entity, ...] = Field(get_args(Entity), min_length=1)
    """What is replaced."""
    countries: tuple[Country, ...] = Field(get_args(Country), min_length=1)
    """Countries whose national ids are replaced, ISO 3166."""
    phone_regions: tuple[Annotated[str, AfterValidator(_region)], ...] = ("US",)
    """Regions whose phone numbers are known without `+` and country code, ISO 3166; the first that fits counts."""
    private_ips: bool = False
    """Whether addresses that mean nothing outside a network (10.0.0.1) are replaced too."""

    def clean(self, row: Row, notes: Notes) -> Row:
        return self.mapped(row, lambda text: self._redacted(text, notes))

    def _redacted(self, text: str, notes: Notes) -> str:
        """Until nothing is found: what one replacement uncovers, the next one finds."""
        while spans := self._chosen(self._found(text)):
            parts, place = [], 0
            for start, end, name in spans:
                parts += [text[place:start], f"<{name}>"]
                place = end
                notes[name] += 1
            text = "".join([*parts, text[place:]])
        return text

    @staticmethod
    def _chosen(found: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        """Spans of which none overlaps another: the first counts, of several that begin at a place the longest."""
        chosen: list[tuple[int, int, str]] = []
        for span in sorted(found, key=lambda one: (one[0], -one[1])):
            if not chosen or span[0] >= chosen[-1][1]:
                chosen.append(span)
        return chosen

    def _found(self, text: str) -> Iterator[tuple[int, int, str]]:
        if "EMAIL_ADDRESS" in self.entities and "@" in text:
            for start, end in _lines(text, _AT):
                for span in pii_kinds.email_addresses(text, start, end):
                    yield *span, "EMAIL_ADDRESS"
        if "IP_ADDRESS" in self.entities:
            for pattern in (_POINTS, _COLONS):
                for start, end in _lines(text, pattern):
                    for span in pii_kinds.ip_addresses(text, start, end, private=self.private_ips):
                        yield *span, "IP_ADDRESS"
        if {"CREDIT_CARD", "IBAN_CODE", "NATIONAL_ID", "PHONE_NUMBER"}.intersection(self.entities):
            for start, end in _lines(text, _DIGITS):
                yield from self._numbers(text, start, end)

    def _numbers(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        """Of what is found in the same place twice, the first counts: checks are stricter there."""
        if "IBAN_CODE" in self.entities:
            for span in pii_kinds.ibans(text, start, end):
                yield *span, "IBAN_CODE"
        if "CREDIT_CARD" in self.entities:
            for span in pii_kinds.credit_cards(text, start, end):
                yield *span, "CREDIT_CARD"
        if "NATIONAL_ID" in self.entities:
            for kind in pii_kinds.NATIONAL_IDS:
                if kind.country in self.countries:
                    for span in kind.find(text, start, end):
                        yield *span, kind.name
        if "PHONE_NUMBER" in self.entities:
            for span in pii_kinds.phone_numbers(text, start, end, regions=self.phone_regions):
                yield *span, "PHONE_NUMBER"


def _lines(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """The lines of a text that have what a pattern finds."""
    place = 0
    while match := pattern.search(text, place):
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        place = len(text) if end < 0 else end
        yield start, place
