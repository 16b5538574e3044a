"""Recall and precision of the step `pii` on text with a known answer, and its speed.

Every region of libphonenumber, every format of keys and cards and the texts that look alike is written into sentences
of several languages. A value is found if exactly it is replaced; a text that has none must stay as it is.

    python benchmarks/pii.py [--text DIRECTORY] [--seed 0]

With `--text`, MB/s over its Python files are measured too.
"""

import argparse
import random
import string
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberType
from stdnum import luhn
from stdnum.iso7064 import mod_97_10

from maas_ray.data.cleaning import Notes
from maas_ray.data.cleaning.pii import Pii

SENTENCES = ("We met {} again.", "({})", "我们用{}联系", "ติดต่อ{}ครับ", "連絡は{}まで", "a; {}; b", "«{}»")
Case = tuple[str, str, str, tuple[str, ...]]
"""Kind, the value, a word before it, and phone regions."""


def phones(draws: random.Random) -> Iterator[Case]:
    """The example numbers of all regions, fixed and mobile, and numbers drawn like them."""
    formats = {"national": 2, "international": 1, "E.164": 0, "RFC 3966": 3}
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE):
            example = phonenumbers.example_number_for_type(region, kind)
            if not example:
                continue
            for number in (example, *drawn(draws, example, region)):
                for name, style in formats.items():
                    text = phonenumbers.format_number(number, style)
                    plain = name == "national" and text.isdigit()
                    yield f"phone, {name}" + (", digits alone" * plain), text.removeprefix("tel:"), "", (region,)
                    if plain:
                        yield f"phone, {name}, digits after a word", text, "Tel. ", (region,)
                text = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
                if not text.isdigit():
                    yield "phone, national, extension", f"{text} ext. {draws.randrange(1, 999)}", "", (region,)
                    yield "phone, national, no-break spaces", text.replace(" ", "\u00a0"), "", (region,)
                    yield "phone, national, other dashes", text.replace("-", "\u2011"), "", (region,)


def drawn(draws: random.Random, example: phonenumbers.PhoneNumber, region: str) -> Iterator[phonenumbers.PhoneNumber]:
    digits = phonenumbers.national_significant_number(example)
    for _ in range(3):
        tail = "".join(draws.choice(string.digits) for _ in digits[-4:])
        try:
            number = phonenumbers.parse(f"+{example.country_code}{digits[:-4]}{tail}")
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number_for_region(number, region):
            yield number


def cards(draws: random.Random) -> Iterator[Case]:
    issuers = {
        "Visa": ("4", 16), "Mastercard": ("52", 16), "Mastercard 2": ("2300", 16), "Amex": ("37", 15),
        "JCB": ("3530", 16), "Diners": ("36", 14), "Discover": ("6011", 16), "UnionPay": ("62", 16),
        "UnionPay 19": ("62", 19), "Mir": ("2200", 16),
        "RuPay": ("81", 16), "Maestro": ("6759", 16), "Visa 13": ("4", 13),
        "Visa 19": ("4", 19), "Maestro 12": ("5018", 12),
        "Maestro 18": ("6304", 18),
    }  # fmt: skip
    groups = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4), 19: (4, 4, 4, 4, 3), 13: (4, 3, 3, 3), 12: (4, 4, 4)}
    for issuer, (prefix, length) in issuers.items():
        for _ in range(20):
            body = prefix + "".join(draws.choice(string.digits) for _ in range(length - len(prefix) - 1))
            digits = body + luhn.calc_check_digit(body)
            rare = issuer in ("Visa 13", "Visa 19", "Maestro 12", "Maestro 18")
            yield f"card, {'rare length after a word' if rare else 'digits'}", digits, "card " * rare, ()
            if sizes := groups.get(length):
                starts = [sum(sizes[:index]) for index in range(len(sizes))]
                for sign in (" ", "-", "\u00a0"):
                    text = sign.join(digits[at : at + size] for at, size in zip(starts, sizes, strict=True))
                    yield "card, groups", text, "", ()


def accounts(draws: random.Random) -> Iterator[Case]:
    structures = {
        "DE": "18n", "GB": "4a14n", "FR": "10n11c2n", "NL": "4a10n", "ES": "20n", "IT": "1a10n12c", "PL": "24n",
        "NO": "11n",
        "CH": "5n12c", "AT": "16n", "BE": "12n", "SE": "20n", "PT": "21n", "FI": "14n", "TR": "6n16c", "SA": "2n18c",
    }  # fmt: skip
    signs = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits + string.ascii_uppercase}
    from stdnum import iban

    for country, structure in structures.items():
        kept = 0
        for _ in range(20_000):
            body, count = "", ""
            for sign in structure:
                if sign.isdigit():
                    count += sign
                else:
                    body, count = body + "".join(draws.choice(signs[sign]) for _ in range(int(count))), ""
            whole = country + mod_97_10.calc_check_digits(body + country) + body
            if not iban.is_valid(whole):  # some countries have check digits of their own
                continue
            spaced = " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))
            for style in (whole, spaced, whole.lower(), spaced.replace(" ", "-"), spaced.replace(" ", "\u202f")):
                yield "IBAN", style, "", ()
            kept += 1
            if kept == 5:
                break


def addresses(draws: random.Random) -> Iterator[Case]:
    locals_ = ("anna", "anna.meyer", "o'brien", "a_b", "x+news", "müller", "иван", "john.")
    domains = (
        "example.com",
        "mail.example.co.uk",
        "xn--e1afmkfd.xn--p1ai",
        "пример.рф",
        "example.museum",
        "qq.com",
        "163.com",
    )
    for local in locals_:
        for domain in domains:
            yield "e-mail", f"{local}@{domain}", "", ()
            yield "e-mail, written for URLs and HTML", f"{local}{draws.choice(('%40', '&#64;', '＠'))}{domain}", "", ()
            for after in ("[1]", "(work)", "_", "=", "请", ".", "\u00a0x"):
                yield "e-mail, signs after it", f"{local}@{domain}", f"|{after}", ()


def keys(draws: random.Random) -> Iterator[Case]:
    def some(count: int, signs: str = string.ascii_letters + string.digits) -> str:
        return "".join(draws.choice(signs) for _ in range(count))

    hexadecimal, url = "0123456789abcdef", string.ascii_letters + string.digits + "_-"
    for _ in range(20):
        for value in (
            "AKIA" + some(16, string.ascii_uppercase + "234567"), "ghp_" + some(36),
            f"github_pat_{some(22)}_{some(59)}",
            "glpat-" + some(20), f"xoxb-{some(12, string.digits)}-{some(24)}",
            "sk_live_" + some(24),
            "AIza" + some(34, url) + "x", "GOCSPX-" + some(27, url) + "x", "hf_" + some(34, string.ascii_letters),
            "npm_" + some(36), "pypi-AgEIcHlwaS5vcmc" + some(60), f"SG.{some(22)}.{some(43)}",
            "dop_v1_" + some(64, hexadecimal),
            "shpat_" + some(32, hexadecimal), "hvs." + some(90), "sk-proj-" + some(60), "sk-ant-api03-" + some(95),
            "gsk_" + some(52), "dapi" + some(32, hexadecimal), "dckr_pat_" + some(27),
            "NRAK-" + some(27, string.ascii_uppercase),
            f"glsa_{some(32)}_{some(8, hexadecimal)}", f"PMAK-{some(24, hexadecimal)}-{some(34, hexadecimal)}",
            f"{some(9, '123456789')}:AA{some(33)}",
        ):  # fmt: skip
            yield "API key", value, "", ()
        lines = "\n".join(some(64, url.replace("_", "+").replace("-", "/")) for _ in range(8))
        yield "private key", f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----", "", ()


def lookalikes(draws: random.Random) -> Iterator[tuple[str, str]]:
    """Texts in which nothing is personal."""
    number = draws.randrange
    for _ in range(300):
        yield (
            "dates and times",
            f"{number(1990, 2030)}-{number(1, 13):02}-{number(1, 29):02} {number(24):02}:{number(60):02}",
        )
        yield "dates and times", f"{number(1, 29):02}.{number(1, 13):02}.{number(1990, 2030)}"
        yield "dates and times", f"{number(1, 13)}/{number(1, 29)}/{number(1990, 2030)}"
        yield "dates and times", f"{number(10**9, 2 * 10**9)}, {number(10**12, 2 * 10**12)}"
        yield "versions", f"v{number(9)}.{number(99)}.{number(99)}.{number(99)}, =={number(9)}.{number(20)}.{number(9)}"
        yield "decimals", f"{draws.random()} {draws.random() * 1e6:.6f} {draws.gauss(0, 1):.3e} {number(10**9):,}"
        yield "order numbers", f"order {number(10**7, 10**8)}, {number(10**9, 10**10)}, ref {number(10**11, 10**12)}"
        yield "hashes", f"{draws.getrandbits(160):040x} {draws.getrandbits(256):064x} {draws.getrandbits(96):024x}"
        yield "UUIDs", "-".join(f"{draws.getrandbits(4 * size):0{size}x}" for size in (8, 4, 4, 4, 12))
        yield "EAN and ISBN", f"{ean('40' + str(number(10**9, 10**10)))} {ean('978' + str(number(10**8, 10**9)))}"
        yield (
            "code",
            f"y = {draws.choice('abc')}@{draws.choice(('w', 'W1', 'self.q'))}.{draws.choice(('mean', 'T', 'dot'))}()",
        )
        yield "tables of numbers", " ".join(str(number(1000, 10_000)) for _ in range(9))
        yield "tables of numbers", " ".join(f"{number(100):02}" for _ in range(12))
        yield "coordinates", f"{draws.uniform(-90, 90):.7f}, {draws.uniform(-180, 180):.7f}"
        yield "pages", f"pp. {number(100, 999)}-{number(100, 999)} ({number(1950, 2026)})"


def ean(digits: str) -> str:
    from stdnum import ean as module

    return digits + module.calc_check_digit(digits)


def measure(seed: int) -> None:
    draws = random.Random(seed)
    total, found = Counter[str](), Counter[str]()
    steps: dict[tuple[str, ...], Pii] = {}
    for cases in (phones, cards, accounts, addresses, keys):
        for kind, value, word, regions in cases(draws):
            before, _, after = word.partition("|")
            sentence = draws.choice(SENTENCES)
            wanted = sentence.replace("{}", before + "<X>" + after)
            step = steps.setdefault(regions, Pii(phone_regions=regions) if regions else Pii())
            text = step.clean({"text": sentence.replace("{}", before + value + after)}, Notes())["text"]
            total[kind] += 1
            found[kind] += replaced(text) == wanted
    print("| kind | values | found |\n|---|---|---|")
    for kind, count in total.items():
        print(f"| {kind} | {count:,} | {100 * found[kind] / count:.1f} % |")
    every = Pii(phone_regions=("US", "DE", "FR", "GB", "JP", "BR", "IN"))
    texts, wrong = Counter[str](), Counter[str]()
    for kind, text in lookalikes(draws):
        texts[kind] += 1
        wrong[kind] += every.clean({"text": text}, Notes())["text"] != text
    print("\n| text that has none | texts | changed |\n|---|---|---|")
    for kind, count in texts.items():
        print(f"| {kind} | {count:,} | {wrong[kind]} |")


def replaced(text: str) -> str:
    """A text with its first type as <X>."""
    start, end = text.find("<"), text.find(">")
    return text[:start] + "<X>" + text[end + 1 :] if 0 <= start < end else text


def speed(directory: Path) -> None:
    texts = [path.read_text("utf-8", "replace") for path in sorted(directory.rglob("*.py"))[::4]]
    step, size = Pii(), sum(len(text.encode()) for text in texts) / 1e6
    started = time.process_time()
    for text in texts:
        step.clean({"text": text}, Notes())
    print(f"\n{size:.1f} MB of {directory}: {size / (time.process_time() - started):.1f} MB/s")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--text", type=Path)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    measure(given.seed)
    if given.text:
        speed(given.text)
