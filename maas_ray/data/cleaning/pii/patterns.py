"""Patterns of personal data, and the checks that tell it from other numbers.

The checks are those of python-stdnum (check digits), phonenumbers (numbering plans) and Python's `ipaddress`. A number
whose check digits one in ten random numbers would pass counts only after a word that names it, or in its own
punctuation. Names follow Microsoft Presidio (https://microsoft.github.io/presidio/supported_entities/); names that
Presidio does not have are formed alike.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module

# The surroundings of a number: no letter, digit or decimal point adjoins it.
_START, _END = r"(?<![\w./])", r"(?!\w|\.\d)"
_NEAR = 40
"""Characters before a number in which a word may name it."""


@dataclass(frozen=True)
class Kind:
    """Numbers of one kind.

    Args:
        name: the type that replaces them.
        country: their country by ISO 3166. Empty: any.
        pattern: their form.
        check: name of the python-stdnum module that validates them. Empty: the pattern decides alone.
        loose: their form after a word of `context`.
        context: words that name them.
    """

    name: str
    country: str
    pattern: str
    check: str = ""
    loose: str = ""
    context: str = ""

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], bool]]:
        """The forms to search for, each with whether a word of the context must come before it."""
        given = ((self.pattern, False), (self.loose, True))
        return [(re.compile(_START + pattern + _END), loose) for pattern, loose in given if pattern]

    @cached_property
    def _word(self) -> re.Pattern[str]:
        # No digit and no other token is in between, so the word belongs to this number.
        return re.compile(rf"(?i)(?<!\w)(?:{self.context})(?!\w)[^0-9<>]*$")

    def find(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Start and end of each number between two positions of a text."""
        for pattern, loose in self._patterns:
            for match in pattern.finditer(text, start, end):
                at = match.start()
                if (not loose or self._word.search(text[max(0, at - _NEAR) : at])) and self._passes(match[0]):
                    yield match.span()

    def _passes(self, number: str) -> bool:
        return not self.check or _validator(self.check)(re.sub(r"[ .\-/]", "", number))


@cache
def _validator(module: str) -> Callable[[str], bool]:
    is_valid: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return is_valid


NATIONAL_IDS = (
    Kind("US_SSN", "US", r"\d{3}-\d{2}-\d{4}", "us.ssn", r"\d{3} ?\d{2} ?\d{4}", "ssn|social security(?: number| no)?"),
    # HM Revenue and Customs, National Insurance Manual, NIM39110: it has no check digit.
    Kind(
        "UK_NINO",
        "GB",
        r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D]",
    ),
    Kind(
        "DE_TAX_ID",
        "DE",
        r"\d{2} \d{3} \d{3} \d{3}",
        "de.idnr",
        r"\d{11}",
        r"steuer-?id(?:nr|entifikationsnummer)?|idnr\.?|identifikationsnummer|tin|tax id",
    ),
    Kind("FR_NIR", "FR", r"[1278] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", "fr.nir"),
    Kind("ES_NIF", "ES", r"\d{8}-?[A-HJ-NP-TV-Z]", "es.dni"),
    Kind("ES_NIE", "ES", r"[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z]", "es.nie"),
    Kind(
        "IT_FISCAL_CODE",
        "IT",
        r"(?i:[A-Z]{6}[\dLMNP-V]{2}[A-EHLMPR-T][\dLMNP-V]{2}[A-Z][\dLMNP-V]{3}[A-Z])",
        "it.codicefiscale",
    ),
    Kind("NL_BSN", "NL", "", "nl.bsn", r"\d{4}\.?\d{2}\.?\d{3}", "bsn|burgerservicenummer|sofi-?nummer"),
    Kind("PL_PESEL", "PL", "", "pl.pesel", r"\d{11}", r"pesel"),
    Kind("BR_CPF", "BR", r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf", r"\d{11}", "cpf"),
    Kind(
        "IN_AADHAAR",
        "IN",
        r"\d{4} \d{4} \d{4}(?! ?\d)",
        "in_.aadhaar",
        r"\d{12}",
        "a+dhaa?r(?: number| no)?|uid(?:ai)?",
    ),
    Kind("CN_RIC", "CN", r"\d{17}[\dX]", "cn.ric"),
)

_CARD = re.compile(
    r"(?<![\w.])(?:\d{14,16}(?![\w-]|\.\d)"
    r"|(?<!\d[ -])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5})(?!\w|[.-]\d| \d{4}))"
)
# By issuer identification numbers: Visa, Mastercard, American Express, Diners Club, JCB, Discover, UnionPay.
_ISSUERS = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14}"
)


def credit_cards(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Payment cards, by issuer, grouping and Luhn's check digit (ISO/IEC 7812)."""
    for match in _CARD.finditer(text, start, end):
        digits = re.sub("[ -]", "", match[0])
        if _ISSUERS.fullmatch(digits) and _validator("luhn")(digits):
            yield match.span()


_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")


def ibans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """International bank account numbers (ISO 13616), by the country's structure and modulo 97."""
    for match in _IBAN.finditer(text, start, end):
        candidate = match[0]
        while len(candidate) >= 15:
            if _validator("iban")(candidate):
                yield match.start(), match.start() + len(candidate)
                break
            candidate = candidate.rpartition(" ")[0]  # a word in capitals may follow


_IPV4 = re.compile(
    r"(?<![\w.+-])(?<!\d:)(?:(?<=//)|(?<!/))(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}"
    r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?![\w+-]|\.\w|/\d{1,2}(?!\d))"
)
# Four numbers with points are a version, or an object identifier, if a word before them says so.
_VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|version|release|rev|revision|build|firmware|oid|objectidentifier|section|chapter)s?\b|[=<>~^]=?)"
    r"[ :(\"'=]*$"
)
# Small numbers are versions more often than addresses. Such a word, or a port after them, makes them an address.
_HOST = re.compile(
    r"(?i)(?:\b(?:ips?|ipv4|addr|address|host|server|client|from|peer|remote|ping|gateway|dns)\b|//)[^0-9<>]{0,12}$"
)
_PORT = re.compile(r":\d{2,5}\b")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6_PART = re.compile(r"[0-9A-Fa-f:.]*")
_NETWORK = re.compile(r"/\d{1,3}(?!\d)")
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")


def ip_addresses(text: str, start: int, end: int, *, private: bool) -> Iterator[tuple[int, int]]:
    """Addresses of hosts; with `private`, addresses of private networks too."""
    for match in _IPV4.finditer(text, start, end):
        before = text[max(0, match.start() - 24) : match.start()]
        if _VERSION.search(before) or not (address := _address(match[0], private)):
            continue
        large = not address.is_global or max(address.packed) >= 100
        if large or _HOST.search(before) or _PORT.match(text, match.end(), end):
            yield match.span()
    place = start
    while colons := _COLONS.search(text, place, end):
        first, last = colons.start(), colons.end()
        while first > max(start, colons.start() - 40) and text[first - 1] in "0123456789abcdefABCDEF:":
            first -= 1
        last = max(last, _IPV6_PART.match(text, colons.start(), min(end, first + 60)).end())  # type: ignore[union-attr]
        candidate = text[first:last].rstrip(".")
        place = max(last, colons.end())
        whole = (first == 0 or not (text[first - 1].isalnum() or text[first - 1] in "_.")) and not (
            text[last : last + 1].isalnum() or text[last : last + 1] == "_"
        )
        candidate = candidate[:-1] if candidate.endswith(":") and not candidate.endswith("::") else candidate
        if whole and _address(candidate, private) and not _NETWORK.match(text, last):
            yield first, first + len(candidate)


def _address(candidate: str, private: bool) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address if somebody may have it, or None."""
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return None
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_reserved:
        return None
    if address.is_global:
        # No address outside 2000::/3 is assigned to anybody: `a::b` is a name in C++.
        return address if address.version == 4 or address in _GLOBAL_V6 else None
    return address if private and (address.is_private or address.is_link_local) else None


_DOMAIN = re.compile(r"@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24})(?![\w-]|\.\w)")
# Forms that people use, not all that RFC 5321 allows: other signs are around addresses more often than in them.
_LOCAL = re.compile(r"(?<![\w.])\w(?:[\w.+%&'-]*[\w+-])?$")
_MAX_LOCAL = 64


def email_addresses(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Addresses of people and lists, also internationalised ones. The operator `@` and Git remotes do not count."""
    for match in _DOMAIN.finditer(text, start, end):
        at, stop = match.start(), match.end()
        local = _LOCAL.search(text[max(start, at - _MAX_LOCAL - 1) : at])
        after = text[stop : stop + 1]
        if local is None or ".." in local[0] or after in ("(", "[", "="):
            continue
        if local[0] == "git" and after in (":", "/"):
            continue
        yield at - len(local[0]), stop


# Digits in groups. A point before a space ends a sentence.
_PHONE = re.compile(r"(?<![\w.+/=-])(?:\+\(?\d|\(?\d)(?:[\d()\-/ \u00a0]|\.(?! )){4,22}\d(?![\w]|[.,/:-]\d)")
_DECIMAL = re.compile(r"\+?\d+\.\d+")
_DATE = re.compile(r"(?:19|20)\d\d[./ -]\d{1,2}[./ -]\d{1,2}|\d{1,2}[./ -]\d{1,2}[./ -](?:19|20)?\d\d\b")


def phone_numbers(text: str, start: int, end: int, *, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Numbers of a numbering plan: with `+`, or written in the groups of one of the regions."""
    import phonenumbers
    from phonenumbers import Leniency, PhoneNumberMatcher

    for match in _PHONE.finditer(text, start, end):
        candidate = match[0]
        digits = sum(map(str.isdigit, candidate))
        if (
            not 7 <= digits <= 15
            or _DECIMAL.fullmatch(candidate)
            or (_DATE.search(candidate) and not candidate.startswith("+"))
        ):
            continue
        if candidate.startswith("+"):
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(candidate, None)):
                    yield match.span()
            except phonenumbers.NumberParseException:
                pass
            continue
        if not _grouped(candidate):
            continue
        for region in regions:
            numbers = PhoneNumberMatcher(candidate, region, Leniency.EXACT_GROUPING)
            if any(sum(map(str.isdigit, number.raw_string)) == digits for number in numbers):
                yield match.span()
                break


def _grouped(number: str) -> bool:
    """True if the same sign separates all groups, apart from brackets around the first. Digits alone are not."""
    rest = re.sub(r"^\(\d+\) ?", "", number)
    signs = set(re.findall(r"\D+", rest))
    return rest != number or (bool(signs) and len(signs) == 1 and signs <= {" ", "-", ".", "/", " / ", " - ", "\u00a0"})
