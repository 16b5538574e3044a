"""National ids, payment cards and bank accounts, and the check digits that tell them from other numbers.

The checks are those of python-stdnum. A number whose check digits one in ten random numbers would pass counts only
after a word that names it, or in its own punctuation. Names follow Microsoft Presidio
(https://microsoft.github.io/presidio/supported_entities/); names that Presidio does not have are formed alike.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module

from maas_ray.data.cleaning.pii.characters import WORD

# The surroundings of a number: no letter, digit or decimal point adjoins it. The start is checked after the first sign
# of the number, because `re` skips text quickly only to a pattern that begins with a set of characters.
_START, _END = rf"(?<!{WORD}.)(?<![./].)", rf"(?!{WORD}|\.\d)"
_FIRST = re.compile(r"(?P<set>\\d|\[[^]]+\])(?:\{(?P<count>\d+)\})?")
NEAR = 40
"""Characters before a number in which a word may name it."""


def named_by(words: str) -> re.Pattern[str]:
    """Pattern for the text before a number: it ends with one of the words, no digit and no other token in between."""
    return re.compile(rf"(?i)(?<!{WORD})(?:{words})(?!{WORD})[^0-9<>\n]*$")


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
        """The forms to search for, each with True if a word of the context must come before it."""
        given = ((self.pattern, False), (self.loose, True))
        return [(_bounded(pattern), loose) for pattern, loose in given if pattern]

    @cached_property
    def _word(self) -> re.Pattern[str]:
        return named_by(self.context)

    def find(self, text: str, start: int, end: int, named: bool) -> Iterator[tuple[int, int]]:
        """Start and end of each number between two positions of a text; `named`: a word of a context is there."""
        for pattern, loose in self._patterns:
            if loose and not named:
                continue
            for match in pattern.finditer(text, start, end):
                at = match.start()
                if (not loose or self._word.search(text[max(0, at - NEAR) : at])) and self._passes(match[0]):
                    yield match.span()

    def _passes(self, number: str) -> bool:
        return not self.check or _validator(self.check)(re.sub(r"[ .\-/]", "", number))


def _bounded(pattern: str) -> re.Pattern[str]:
    """A pattern that begins with a set of characters, with no letter or digit around it."""
    first = _FIRST.match(pattern)
    if not first:
        raise ValueError(f"{pattern} does not begin with a set of characters")
    rest = f"{first['set']}{{{int(first['count'] or 1) - 1}}}{pattern[first.end() :]}"
    return re.compile(first["set"] + _START + rest + _END)


@cache
def _validator(module: str) -> Callable[[str], bool]:
    is_valid: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return is_valid


_NINO = (
    r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?<!BG)(?<!GB)(?<!KN)(?<!NK)(?<!NT)(?<!TN)(?<!ZZ)(?:[ -]?\d{2}){3}[ -]?[A-D]"
)
_NINO_SMALL = r"[A-Za-z](?i:" + _NINO.replace("[A-CEGHJ-PR-TW-Z]", "(?<=[A-CEGHJ-PR-TW-Z])", 1) + ")"
NATIONAL_IDS = (
    Kind("US_SSN", "US", r"\d{3}-\d{2}-\d{4}", "us.ssn", r"\d{3} ?\d{2} ?\d{4}", "ssn|social security(?: number| no)?"),
    # HM Revenue and Customs, National Insurance Manual, NIM39110: it has no check digit.
    Kind("UK_NINO", "GB", _NINO, "", _NINO_SMALL, "nino|ni(?: number| no)|national insurance(?: number| no)?"),
    Kind("UK_NHS", "GB", "", "gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "nhs(?: number| no)?"),
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
        r"[A-Za-z]{6}(?i:[\dLMNP-V]{2}[A-EHLMPR-T][\dLMNP-V]{2}[A-Z][\dLMNP-V]{3}[A-Z])",
        "it.codicefiscale",
    ),
    Kind("NL_BSN", "NL", "", "nl.bsn", r"\d{4}\.?\d{2}\.?\d{3}", "bsn|burgerservicenummer|sofi-?nummer"),
    Kind("PL_PESEL", "PL", "", "pl.pesel", r"\d{11}", r"pesel"),
    Kind("BR_CPF", "BR", r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf", r"\d{11}", "cpf"),
    Kind("CA_SIN", "CA", "", "ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "sin|nas|social insurance(?: number| no)?"),
    Kind("AU_TFN", "AU", "", "au.tfn", r"\d{3} ?\d{3} ?\d{2,3}", "tfn|tax file(?: number| no)?"),
    Kind(
        "IN_AADHAAR",
        "IN",
        r"\d(?<!\d .)\d{3} \d{4} \d{4}(?! ?\d)",
        "in_.aadhaar",
        r"\d{12}",
        "a+dhaa?r(?: number| no)?|uid(?:ai)?",
    ),
    Kind("CN_RIC", "CN", r"\d{17}[\dXx]", "cn.ric"),
)

# A part of every word of a context, in small letters.
_HINTS = (
    "ssn", "social", "nino", "ni n", "ni:", "ni ", "national ins", "nhs", "steuer", "id", "tin", "tax", "bsn",
    "burgerservice", "sofi", "pesel", "cpf", "sin", "nas", "tfn", "dha",
)  # fmt: skip


def national_ids(text: str, start: int, end: int, countries: tuple[str, ...]) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind of the ids of some countries between two positions of a text."""
    line = text[start:end].lower()
    named = any(hint in line for hint in _HINTS)
    for kind in NATIONAL_IDS:
        if kind.country in countries:
            for span in kind.find(text, start, end, named):
                yield *span, kind.name


# Digits alone, or groups with one sign between them. A group before or after would make it a row of numbers.
_CARD = re.compile(
    rf"\d(?<!{WORD}.)(?<!\..)(?:\d{{11,18}}(?!{WORD}|-|\.\d)"
    rf"|(?<!\d[ -].)\d{{3,7}}([ .-])\d+(?:\1\d+)*(?!{WORD}|\.\d))"
)
_GROUPS = frozenset(
    {(4,) * 4, (4, 6, 5), (4, 6, 4), (4, 4, 4), (4, 3, 3, 3), (4, 4, 5), (4, 4, 4, 1), (4, 4, 4, 4, 1), (4, 4, 4, 4, 2)}
    | {(4, 4, 4, 4, 3), (6, 13), (6, 10), (8, 8)}
)
# Issuer identification numbers with the lengths that are common, as Wikipedia lists them under "Payment card number":
# Visa, Mastercard, American Express, Diners Club, JCB, Discover, UnionPay, RuPay, Mir, Maestro and other debit cards,
# Troy, Uzcard, Humo.
_ISSUERS = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"
    r"|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}|(?:60|8[12])\d{14}|220[0-4]\d{12}"
    r"|(?:5018|5019|5020|5038|5061|5067|508\d|509\d|5893|6304|636\d|6759|676[1-3])\d{12}|(?:9792|8600|9860)\d{12}"
)
# Lengths that are rare, or that other numbers have: in groups, or after a word.
_RARE_ISSUERS = re.compile(
    r"4\d{12}(?:\d{6})?|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"
    r"|(?:6011|64[4-9]\d|65\d\d|220[0-4]|35[2-8]\d|3[0689]\d\d)\d{13,15}"
)
_DEBIT_CARD = re.compile(r"(?:5[06-8]|6\d)\d{10,17}")
_CARD_WORD = named_by(
    r"cards?|creditcard|visa|mastercard|maestro|amex|discover|unionpay|rupay|credit|debit|cc|pan|(?:kredit|bank|giro)?karten?"
    r"(?:nummer|nr)?|carte|tarjeta|cart[aã]o|carta|карт[аыу]|卡|卡号|信用卡|银行卡|カード|カード番号|카드"
)


def credit_cards(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Payment cards, by issuer, grouping and Luhn's check digit (ISO/IEC 7812)."""
    for match in _CARD.finditer(text, start, end):
        groups = re.split(r"\D", match[0])
        named = bool(_CARD_WORD.search(text[max(0, match.start() - NEAR) : match.start()]))
        for count in range(len(groups), 0, -1):
            follower = groups[count] if count < len(groups) else ""
            fits = count == 1 == len(groups) or tuple(map(len, groups[:count])) in _GROUPS
            if fits and len(follower) != 4 and _is_card("".join(groups[:count]), named, count > 1):
                yield match.start(), match.start() + sum(map(len, groups[:count])) + count - 1
                break


def _is_card(digits: str, named: bool, grouped: bool) -> bool:
    by = (_ISSUERS, *(_RARE_ISSUERS,) * (named or grouped), *(_DEBIT_CARD,) * named)
    return any(pattern.fullmatch(digits) for pattern in by) and _validator("luhn")(digits)


# From the check digits on.
_IBAN = re.compile(
    rf"\d(?<=[A-Za-z]{{2}}\d)(?<!{WORD}..\d)\d"
    rf"(?:[ -]?[A-Za-z0-9]{{4}}){{2,7}}(?:[ -]?[A-Za-z0-9]{{1,3}})?(?!{WORD})"
)
_LAST_GROUP = re.compile(r"[ -][^ -]*$")


def ibans(text: str, positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """International bank account numbers (ISO 13616), by the country's structure and modulo 97.

    Args:
        text: the text.
        positions: where two digits follow two letters.
    """
    for match in filter(None, (_IBAN.match(text, position) for position in positions)):
        first = match.start() - 2
        candidate = text[first : match.end()]
        while len(candidate) >= 15:
            if _validator("iban")(candidate):
                yield first, first + len(candidate)
                break
            if not (last := _LAST_GROUP.search(candidate)):
                break
            candidate = candidate[: last.start()]  # a word may follow
