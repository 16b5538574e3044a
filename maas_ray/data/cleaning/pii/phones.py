"""Telephone numbers, by the numbering plans and formats of libphonenumber (phonenumbers)."""

import re
from collections.abc import Iterator

from maas_ray.data.cleaning.pii.characters import WORD
from maas_ray.data.cleaning.pii.numbers import NEAR

# Digits with signs between them, as far as they go. A point before a space ends a sentence.
_RUN = re.compile(rf"[+(\d](?<!{WORD}.)(?<!\d\..)(?:(?<=\+)\(?\d|(?<=\()\d|(?<=\d))(?:[\d()\-/ +]|\.(?! )){{3,}}")
_LAST_GROUP = re.compile(r"\D*\d+$")
# The last group goes on, or is a part of a time or a decimal.
_GOES_ON = re.compile(rf"{WORD}|:\d|,\d{{1,3}}(?!\d)")
# Signs between two numbers, in the order in which a run is cut at them.
_CUTS = (re.compile(r" (?=\+\(?\d)|(?<=\d)(?=\+)"), re.compile(r" *[/] *| - |  +"), re.compile(r" (?=\()"))
_MIN_DIGITS, _MAX_DIGITS = 4, 17
_DECIMAL = re.compile(r"\+?\d+\.\d+")
_DATE = re.compile(
    r"(?:19|20)\d\d([./ -])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])([./ -])(?:0?[1-9]|1[0-2])\2(?:19|20)?\d\d"
    r"|(?:0?[1-9]|1[0-2])([./ -])(?:0?[1-9]|[12]\d|3[01])\3(?:19|20)?\d\d"
)
_EXTENSION = re.compile(
    r"(?i)(?:;ext=|[ ,;]*\(? ?(?:ext(?:ension|n)?s?|extensi[oó]n|доб|durchwahl|dw|poste|anexo|interno?"
    rf"|内線|内线|分机|內線|分機)[.:]? ?#?|[ ,]?[x#]) ?\d{{1,7}}(?!{WORD})"
)
_WORDS = (
    "tel|tél|tels|tele(?:phone|fone|fono|fon|fax|foon)s?|t[eé]l[eé]phones?|tel[eé]fonos?|telefon(?:nummer|nr|o|e|i|as)?"
    "|telef|phones?|ph|fax|mobiles?|m[oó]vil|m[oó]bil(?:e|telefon|nummer)?|mob|gsm|celulare?s?|cell(?: ?phones?)?"
    "|cellulare|portable|handy(?:nummer)?|rufnummer|whats ?app|viber|sms|puhelin|puh|tlf|dial|hotline"
    "|call(?: (?:me|us|now|at|on))*|тел|телефон|моб|факс|τηλ|τηλέφωνο|هاتف|تلفن|फोन"
)
_UNSPACED_WORDS = "电话|電話|手机|手機|携帯|联系方式|联系|전화|휴대폰|핸드폰|โทร"
_WORD = re.compile(rf"(?i)(?:(?<!{WORD})(?:{_WORDS})(?!{WORD}|\()|{_UNSPACED_WORDS})[^0-9<>\n]{{0,20}}$")
# A part of every word, in small letters.
_HINTS = (
    "tel", "tél", "phon", "ph", "fax", "mob", "móvil", "móbil", "movil", "gsm", "cel", "portable", "handy", "rufnummer",
    "whats", "viber", "sms", "puh", "tlf", "dial", "hotline", "call", "тел", "моб", "факс", "τηλ", "هاتف", "تلفن",
    "फोन",
    *_UNSPACED_WORDS.split("|"),
)  # fmt: skip


def _is_named(before: str) -> bool:
    """True if a text ends with a word such as `phone`, no digit and no other token after it."""
    low = before.lower()
    return any(hint in low for hint in _HINTS) and bool(_WORD.search(before))


def phone_numbers(
    text: str, start: int, end: int, *, regions: tuple[str, ...], min_digits: int
) -> Iterator[tuple[int, int]]:
    """Numbers of a numbering plan: with `+`, or written in the groups of one of the regions.

    Digits alone count only after a word such as `phone`.

    Args:
        text: the text.
        start: where to begin.
        end: where to stop.
        regions: regions of numbers without `+`.
        min_digits: digits of their shortest numbers.
    """
    for run in _RUN.finditer(text, start, end):
        if len(run[0]) < min_digits or sum(map(str.isdigit, run[0])) < min_digits:
            continue
        named = _is_named(text[max(start, run.start() - NEAR) : run.start()])
        before = text[run.start() - 1 : run.start()]
        if before and before in "=/-" and not named and not run[0].startswith("+"):
            continue
        number = run[0]
        if number[-1].isdigit() and _GOES_ON.match(text, run.end(), end):
            number = _LAST_GROUP.sub("", number)
        for first, last in _numbers_in(number, regions, named):
            yield _extended(text, run.start() + first, run.start() + last, end)


def _extended(text: str, first: int, last: int, end: int) -> tuple[int, int]:
    """Start and end of a number with its extension and an opening bracket before `+`."""
    if extension := _EXTENSION.match(text, last, end):
        last = extension.end()
    if text[first - 1 : first] == "(" and text[first:last].count(")") > text[first:last].count("("):
        first -= 1
    return first, last


def _numbers_in(run: str, regions: tuple[str, ...], named: bool, level: int = 0) -> Iterator[tuple[int, int]]:
    """Start and end of each number in a run: the whole run, or parts of it.

    Args:
        run: digits and signs.
        regions: for numbers without `+`.
        named: True if a word says that a number follows.
        level: index in `_CUTS`.
    """
    run = run.rstrip("()-/ .+")
    if run.startswith("(") and run.count("(") > run.count(")"):  # brackets around the number
        for first, last in _numbers_in(run[1:], regions, named, level):
            yield first + 1, last + 1
        return
    digits = sum(map(str.isdigit, run))
    if digits < _MIN_DIGITS or _DECIMAL.fullmatch(run):
        return
    if digits <= _MAX_DIGITS and (length := _length(run, regions, named)):
        yield 0, length
    elif level < len(_CUTS):
        cuts = [match.span() for match in _CUTS[level].finditer(run)]
        for start, end in zip([0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(run)], strict=True):
            for first, last in _numbers_in(run[start:end], regions, named, level + 1):
                yield start + first, start + last


def _length(candidate: str, regions: tuple[str, ...], named: bool) -> int:
    """Characters of the number that the candidate begins with. 0: it is none."""
    import phonenumbers

    if re.match(r"\+\(?\d", candidate):
        ends = [len(candidate), *(match.start() for match in reversed(list(re.finditer(r"[^\d]+\d+", candidate))))]
        for end in ends:
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(candidate[:end], None)):
                    return end
            except phonenumbers.NumberParseException:
                pass
        return 0
    if not named and _DATE.fullmatch(candidate):
        return 0
    for region in regions:
        if _is_national(candidate, region, named):
            return len(candidate)
    direct = re.fullmatch(r"(.*\d)-\d{1,4}", candidate)  # a private exchange: 030 901820-0
    if direct and any(_is_national(direct[1], region, named) for region in regions):
        return len(candidate)
    return 0


def _is_national(candidate: str, region: str, named: bool) -> bool:
    """True for a valid number in groups that are used in its region; for digits alone, if a word names it."""
    import phonenumbers
    from phonenumbers import Leniency, PhoneNumberFormat, PhoneNumberMatcher

    groups = re.findall(r"\d+", candidate)
    signs = set(re.findall(r"[^\d()]+", candidate))
    mixed = len(signs) > 1 and any("." in sign for sign in signs)
    # Pages and a year, `857-872 (1998)`, have the brackets at the end.
    if (len(groups) == 1 and not named) or mixed or candidate.rfind("(") > candidate.rfind(")"):
        return False
    try:
        number = phonenumbers.parse(candidate, region)
    except phonenumbers.NumberParseException:
        return False
    if not phonenumbers.is_valid_number(number):
        return False
    if len(groups) == 1 or groups == re.findall(r"\d+", phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)):
        return True
    digits = "".join(groups)
    found = PhoneNumberMatcher(candidate, region, Leniency.STRICT_GROUPING if named else Leniency.EXACT_GROUPING)
    return any("".join(re.findall(r"\d+", one.raw_string)) == digits for one in found)
