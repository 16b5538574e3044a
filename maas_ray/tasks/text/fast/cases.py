"""Texts that encoders of byte-level BPE may disagree on: white space, scripts, marks, long runs, contractions.

Patterns cut a text by the classes of its characters, which change from one version of Unicode to the next.
"""

import random
import sys

_SPACES = (
    " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2002\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
)
_JOINERS = "\u200b\u200c\u200d\u2060\u00ad\u034f\ufe0e\ufe0f\u20e3"
_MARKS = "\u0300\u0301\u0323\u0345\u0483\u0591\u064b\u093c\u0e31\u1ab0\u20d0\u3099\U0001d165"
_RUN, _LONG_RUN = 300, 8000
_DENSE, _LAST_LETTERS, _STEP = 0x250, 0x32400, 101
_CONTRACTIONS = ("'s", "'S", "'t", "'RE", "'ve", "'m", "'ll", "'D", "'ſ", "’s", "''s", "'sx", "'", "s'")


def _everywhere(character: str) -> str:
    """A character beside letters, digits, spaces and itself."""
    return f"a{character}1 {character}b\n{character}{character}"


def _characters() -> list[str]:
    codes = [*range(_DENSE), *range(_DENSE, _LAST_LETTERS, _STEP), 0xE0001, 0xE0100, 0xF0000, sys.maxunicode]
    texts = [_everywhere(chr(code)) for code in codes if not 0xD800 <= code < 0xE000]
    return ["".join(texts[start : start + 256]) for start in range(0, len(texts), 256)]


def _runs() -> list[str]:
    units = (
        "a",
        "A",
        " ",
        "\n",
        "\t",
        "\r\n",
        " \n",
        "0",
        "=",
        "-",
        "é",
        "е",
        "東",
        "🙂",
        "e\u0301",
        "\x00",
        "ab",
        "a1",
    )
    return [f"x{unit * _RUN}y" for unit in units] + [unit * _LONG_RUN for unit in ("a", " ", "東")]


def _mixtures() -> list[str]:
    """Random texts, always the same."""
    chosen = random.Random(0)  # noqa: S311  nothing secret
    pool = [*"aZéßſKıİ東京あ한字д٣१²Ⅷ½_.,!?'\"/\\(){}<|>", *_SPACES, *_JOINERS, *_MARKS, "the", "return", "0", "123"]
    pool += ["\r\n", "  ", "\n\n", "👩‍👩‍👧‍👦", "🇩🇪", "\x00", "\x7f", "שלום", "العربية", "हिन्दी", "ไทย", *_CONTRACTIONS]
    return ["".join(chosen.choices(pool, k=chosen.randrange(1, 80))) for _ in range(200)]


def around(token: str) -> list[str]:
    """An added token alone, in a text, beside spaces, doubled, cut short, and in other letters."""
    spaced = (f" {token}", f"{token} ", f"a {token} b", f"a  \n{token}\t\n b", f"a\u00a0{token}\u3000b")
    return [token, f"a{token}b", f"1{token}_", f"é{token}é", *spaced, token * 2, f"{token} {token}", token[:-1],
            token[1:], token.upper(), token.lower(), f"<{token}>", f"\u0301{token}\u0301"]  # fmt: skip


CASES = [
    "",
    *_SPACES,
    *(f"a{space}{other}b" for space in _SPACES for other in _SPACES),
    *(
        f"{word}{contraction}{more}"
        for word in ("it", "IT ", "é")
        for contraction in _CONTRACTIONS
        for more in ("", "a", " a")
    ),
    *(f"{mark}a{mark}{mark} {mark}1{mark}" for mark in (*_MARKS, *_JOINERS)),
    *("1" * digits + " " + "x" + "٣" * digits for digits in range(1, 12)),
    "".join(map(chr, range(0x20))) * 2,
    *_characters(),
    *_runs(),
    *_mixtures(),
]
"""The texts."""
