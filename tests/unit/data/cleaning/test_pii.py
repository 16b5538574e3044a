"""Personal data: what is replaced, and the many numbers that look alike."""

import random
import re
import time
from typing import Any

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.cleaning import Notes
from maas_ray.data.cleaning.pii import Pii
from maas_ray.errors import SpecError
from tests.support.errors import raises


def redacted(text: Any, **fields: Any) -> Any:
    return Pii(**fields).clean({"text": text}, Notes())["text"]


# Numbers are made up, or those that issuers publish as examples; their check digits are right.
FOUND = [
    ("Write to anna.müller+news@mail.web.de, or not.", "Write to <EMAIL_ADDRESS>, or not."),
    ("<o'brien@example.co.uk>", "<<EMAIL_ADDRESS>>"),
    ("email='a@b.com'", "email='<EMAIL_ADDRESS>'"),
    ("电子邮件：wang@qq.com。", "电子邮件：<EMAIL_ADDRESS>。"),
    ("Tel. +49 30 901820", "Tel. <PHONE_NUMBER>"),
    ("tel:+31-641044153", "tel:<PHONE_NUMBER>"),
    ("Call (415) 555-2671 or 415.555.2671!", "Call <PHONE_NUMBER> or <PHONE_NUMBER>!"),
    ("Visa 4111 1111 1111 1111", "Visa <CREDIT_CARD>"),
    ("5500-0000-0000-0004,378282246310005", "<CREDIT_CARD>,<CREDIT_CARD>"),
    ("amex 3782 822463 10005.", "amex <CREDIT_CARD>."),
    ("DE89 3704 0044 0532 0130 00 IBAN", "<IBAN_CODE> IBAN"),
    ("GB29NWBK60161331926819", "<IBAN_CODE>"),
    ("NL91 ABNA 0417 1643 00.", "<IBAN_CODE>."),
    ("from 93.184.216.34", "from <IP_ADDRESS>"),
    ("http://8.8.8.8:53/ and 8.8.8.8:80", "http://<IP_ADDRESS>:53/ and <IP_ADDRESS>:80"),
    ("[2606:4700:4700::1111]:53", "[<IP_ADDRESS>]:53"),
    ("SSN 536-90-4399", "SSN <US_SSN>"),
    ("ssn: 536904399", "ssn: <US_SSN>"),
    ("NI number AB 12 34 56 C", "NI number <UK_NINO>"),
    ("IdNr. 36574261809", "IdNr. <DE_TAX_ID>"),
    ("36 574 261 809", "<DE_TAX_ID>"),
    ("2 95 10 99 126 111 93", "<FR_NIR>"),
    ("DNI 54362315K, NIE X-2482300-W", "DNI <ES_NIF>, NIE <ES_NIE>"),
    ("RCCMNL83S18D969H", "<IT_FISCAL_CODE>"),
    ("BSN 111222333", "BSN <NL_BSN>"),
    ("PESEL: 44051401359", "PESEL: <PL_PESEL>"),
    ("390.533.447-05", "<BR_CPF>"),
    ("2341 2341 2346", "<IN_AADHAAR>"),
    ("身份证11010519491231002X。", "身份证<CN_RIC>。"),
    ("身份证：11010519491231002X。", "身份证：<CN_RIC>。"),
]


FOUND += [
    # Letters of scripts without spaces are not a part of the number or name beside them.
    ("身份证号11010519491231002X是我的", "身份证号<CN_RIC>是我的"),
    ("卡号4111111111111111请", "卡号<CREDIT_CARD>请"),
    ("手机+8613800138000联系", "手机<PHONE_NUMBER>联系"),
    ("服务器203.0.114.200不通", "服务器<IP_ADDRESS>不通"),
    ("IBANはDE89370400440532013000です", "IBANは<IBAN_CODE>です"),
    ("请发邮件到zhangsan@example.com谢谢", "请发邮件到<EMAIL_ADDRESS>谢谢"),
    ("ติดต่อsomchai@example.co.thครับ", "ติดต่อ<EMAIL_ADDRESS>ครับ"),
    ("ទាក់ទង+85512345678ថ្ងៃ, ໂທ+8562023456789ຂໍ", "ទាក់ទង<PHONE_NUMBER>ថ្ងៃ, ໂທ<PHONE_NUMBER>ຂໍ"),
    ("用户@例子.公司谢谢", "<EMAIL_ADDRESS>谢谢"),
    # Signs of word processors, PDFs and phones.
    ("4111\u00a01111\u202f1111\u20071111", "<CREDIT_CARD>"),
    ("DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "<IBAN_CODE>"),
    ("SSN 536\u20134399", "SSN 536\u20134399"),
    ("SSN 536\u201390\u20134399", "SSN <US_SSN>"),
    ("\u202a+1 212\u2011736\u20115000\u202c!", "\u202a<PHONE_NUMBER>\u202c!"),
    ("jo\u00adhn@ac\u200bme.com", "<EMAIL_ADDRESS>"),
    ("４１１１　１１１１　１１１１　１１１１ と ٤١١١١١١١١١١١١١١١", "<CREDIT_CARD> と <CREDIT_CARD>"),
    # Addresses in running text.
    (
        "john@acme.com[1], john@acme.com(work), _john@acme.com_",
        "<EMAIL_ADDRESS>[1], <EMAIL_ADDRESS>(work), <EMAIL_ADDRESS>_",
    ),
    ("user@xn--e1afmkfd.xn--p1ai user@пример.рф john.@acme.com", "<EMAIL_ADDRESS> <EMAIL_ADDRESS> <EMAIL_ADDRESS>"),
    ("john%40acme.com john&#64;acme.com john＠acme.com", "<EMAIL_ADDRESS> <EMAIL_ADDRESS> <EMAIL_ADDRESS>"),
    # Cards of all lengths: examples of issuers, or with Luhn's digit worked out.
    ("4111 1111 1111 1111 12/28, Visa 4222222222222", "<CREDIT_CARD> 12/28, Visa <CREDIT_CARD>"),
    ("6221261234567890129 6759649826438453 5018 0000 0009", "<CREDIT_CARD> <CREDIT_CARD> <CREDIT_CARD>"),
    ("2200 0000 0000 0004, 8171999927660000", "<CREDIT_CARD>, <CREDIT_CARD>"),
    ("de89 3704 0044 0532 0130 00 bitte", "<IBAN_CODE> bitte"),
    ("DE89-3704-0044-0532-0130-00", "<IBAN_CODE>"),
    ("NI number ab123456c, NHS 943 476 5919", "NI number <UK_NINO>, NHS <UK_NHS>"),
    ("SIN 130 692 544, TFN 123 456 782", "SIN <CA_SIN>, TFN <AU_TFN>"),
    # Numbers in other forms.
    ("Tel.212-736-5000, 1 (212) 736-5000", "Tel.<PHONE_NUMBER>, <PHONE_NUMBER>"),
    ("+1 (212) 736-5000 ext. 12; 212-736-5000 x123", "<PHONE_NUMBER>; <PHONE_NUMBER>"),
    ("tel:+1-212-736-5000;ext=12 Phone: 2127365000", "tel:<PHONE_NUMBER> Phone: <PHONE_NUMBER>"),
    ("(+49) 30 901820, +44 (0)20 7946 0018", "<PHONE_NUMBER>, <PHONE_NUMBER>"),
    ("Doe,212-736-5000,10115", "Doe,<PHONE_NUMBER>,10115"),
    # Keys as their issuers' documentation shows them.
    ("AKIAIOSFODNN7EXAMPLE", "<API_KEY>"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = <API_KEY>"),
    ("token ghp_16C7e42F292c6912E7710c838347Ae178B4a", "token <API_KEY>"),
    ("sk_test_4eC39HqLyjWDarjtT1zdp7dc", "<API_KEY>"),
    (
        "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2Mj"
        "M5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
        "Bearer <API_KEY>",
    ),
]


@pytest.mark.parametrize(("text", "without"), FOUND)
def test_personal_data_is_replaced_with_its_type(text: str, without: str) -> None:
    notes = Notes()
    row = Pii().clean({"text": text}, notes)

    assert row == {"text": without}
    assert notes.total() == len(re.findall("<[A-Z_]{6,}>", without))
    assert Pii().clean(row, Notes()) is row
    assert redacted(text.encode()) == (without if without != text else text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4, ==8.8.8.8, 1.2.3.4.5, 10.0.19041.1, ObjectIdentifier('2.5.29.15'), 3.1.1.6",
        "2024-11-28 10:30:00.123456, 28.11.2024, 11/28/2024, 20241128T103000, 1732790000, 1732790000123",
        "d41d8cd98f00b204e9800998ecf8427e 550e8400-e29b-41d4-a716-446655440000 sha256:4111111111111111abcd",
        "0.4111111111111111 4111111111111111.5 -4.111111111111111e16 0x4111111111111111",
        "4111 1111 1111 1112, 4222222222222222, 1234567890123456",
        "111222333, 44051401359, 39053344705, 234123412346, 536904399",
        "2147483647, 4611686018427387904, 18446744073709551615, 555-1234, 12345-6789, pp. 573-583. 2020",
        "x = a@b.mean(axis=0); A@B.T; @app.route; git@github.com:org/repo.git; user@host",
        "std::vector<a::b> 12:30:45 00:1a:2b:3c:4d:5e [::2] a[1::2] ::1 fe80::1",
        "127.0.0.1 0.0.0.0 255.255.255.255 10.0.0.1 192.168.1.1 52.94.0.0/22",
        "2.817 940 2894 e-15, 206.768 2823, 1.410 570 5830",
        "ISBN 978-3-16-148410-0, DE1234, FR76 3000 6000 0112 3456 7890 188, BG 12 34 56 C",
        "lodash@4.17.beta, (q@k.to(d), q@k.T), 5e8@x.grad(y)",
        "261954000*C1*x**2 + 278326125*C1*x, 6.332362889 + 45.92828268*I",
        "pp. 857-872 (1998), 1.410 570 5830, call(2127365000), 2127365000, 4006381333931",
        "2837 3521 8309 7533 4037 7909 8073 3862 5062, 01 42 68 53 00 06 12 34 56 78",
        "get_user_by_primary_key_or_none_at_all2, sk-learn, eyJ.not.token, AKIA, hf_hub_download_and_more",
        "-----BEGIN CERTIFICATE-----",
        "078-05-1120, 000-12-3456, 666-12-3456, 987-65-4321",
        "",
    ],
)
def test_text_that_resembles_personal_data_stays(text: str) -> None:
    assert redacted(text) == text


# Formats by the rules of gitleaks 8 and TruffleHog 3; `w` stands for letters and digits, `h` for hexadecimal digits.
@pytest.mark.parametrize(
    "form",
    [
        "https://hooks.slack.com/services/T{w9}/B{w9}/{w24}",
        "https://hooks.slack.com/workflows/T{w9}/A{w9}/{w18}/{w24}",
        "xoxe.xoxp-1-{w166}",
        "glpat-{w27}.0w{w7}",
        "glpat-{w27}.01.{h9}",
        "glrt-t3_{w27}.0w{h7}",
        "GR1348941{w20}",
        "hf_{w34}",
        "sk-service-{w30}T3BlbkFJ{w30}",
        "sk-{w40}T3BlbkFJ{w40}",
        "r8_-{w36}",
        "ATCTT3xFfG{w180}={h8}",
        "figp_{w40}",
        "figoh_{w40}",
        "secret_{w43}",
        "sbp_{w40}",
        "tskey-scim-{w16}-{w32}",
        "xai-{w80}",
        "lsv2_pt_{h32}_{h10}",
    ],
)
def test_a_key_in_the_format_of_its_issuer_is_replaced(form: str) -> None:
    draws = random.Random(form)
    signs = {"w": "abcdefghjkmnopqrstuvwxyz0123456789", "h": "0123456789abcdef"}
    key = re.sub(r"{(.)(\d+)}", lambda part: "".join(draws.choices(signs[part[1]], k=int(part[2]))), form)
    before, sign, _ = form.partition("hooks.")
    assert redacted(f'x = "{key}"; y') == f'x = "{before if sign else ""}<API_KEY>"; y'


def test_what_a_replacement_uncovers_is_replaced_too() -> None:
    """Only lines beside a replacement are searched again."""
    line = "+1 212 736 5000 anna@web.de4111 1111 1111 1111\nplain\n"
    for text in (line * 3, "\n\n" + line, line + "x@example.com"):
        once = redacted(text)
        assert redacted(once) == once


REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)


@pytest.mark.parametrize("region", REGIONS)
def test_the_example_numbers_of_a_region_are_found_in_every_format(region: str) -> None:
    """The examples of libphonenumber; written as digits alone, or like a date, they need a word before them."""
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
    for number in (phonenumbers.example_number_for_type(region, kind) for kind in kinds):
        if number is None:
            continue
        for style in (0, 1, 2, 3):  # E.164, international, national, RFC 3966
            written = phonenumbers.format_number(number, style).removeprefix("tel:")
            word = "Tel. " if written.isdigit() or (written[:2].isdigit() and len(written) == 8) else "We met "
            assert redacted(f"{word}{written} (again)", phone_regions=(region,)) == f"{word}<PHONE_NUMBER> (again)"


@pytest.mark.parametrize("end", ["\n-----END RSA PRIVATE KEY-----", ""])
@pytest.mark.parametrize("line", ["\n", "\\n"])
def test_private_keys_are_replaced_whole_even_if_their_end_is_missing(line: str, end: str) -> None:
    body = line.join(["MIIEpAIBAAKCAQEA" * 4] * 3 + ["bPxRfiCYEXAMPLEKEY=="])
    key = f"-----BEGIN RSA PRIVATE KEY-----{line}{body}{end.replace(chr(10), line)}"

    assert redacted(f'x = "{key}" # y') == 'x = "<PRIVATE_KEY>" # y'


def test_entities_and_countries_can_be_chosen() -> None:
    text = "a@b.de, 10.0.0.1, 030 901820, 536-90-4399, PESEL 44051401359"

    assert redacted(text) == "<EMAIL_ADDRESS>, 10.0.0.1, 030 901820, <US_SSN>, PESEL <PL_PESEL>"
    assert redacted(text, entities=("IP_ADDRESS",), private_ips=True) == text.replace("10.0.0.1", "<IP_ADDRESS>")
    assert redacted(text, entities=("PHONE_NUMBER",), phone_regions=("DE",)) == text.replace(
        "030 901820", "<PHONE_NUMBER>"
    )
    assert redacted(text, entities=("NATIONAL_ID",), countries=("PL",)) == text.replace("44051401359", "<PL_PESEL>")
    with raises(SpecError, "unknown_region", "'UK'", "US"):
        Pii.parse({"phone_regions": ["UK"]})
    with raises(SpecError, "literal_error", "entities"):
        Pii.parse({"entities": ["PERSON"]})


def test_a_context_word_counts_only_for_the_next_number() -> None:
    assert redacted("BSN 111222333, order 111222333") == "BSN <NL_BSN>, order 111222333"
    assert redacted("BSN\n\n" + "a " * 50 + "111222333").endswith("111222333")


def test_contents_of_a_chat_are_searched_and_roles_are_not() -> None:
    chat = [{"role": "a@b.de", "content": "I am a@b.de"}]

    assert Pii().clean({"messages": chat}, Notes()) == {
        "messages": [{"role": "a@b.de", "content": "I am <EMAIL_ADDRESS>"}]
    }


PIECES = st.one_of(
    st.sampled_from([text for text, _ in FOUND]),
    st.text("0123456789 .-+/():@abcdefABCDEFXYZ<>\n", max_size=30),
    st.text(max_size=10),
)


@given(st.lists(PIECES, max_size=6).map(" ".join))
def test_redacted_text_contains_no_more_personal_data(text: str) -> None:
    once = redacted(text)

    assert redacted(once) == once
    assert once.count("\n") == text.count("\n")


LONG = ("a", "a.", "1", "1 ", "a@", ":", "1.1", "(", "A1", "@a-", "+1", "AB12 ", "1.2.3.4:", "bsn ", "\u0661")


@pytest.mark.parametrize("part", LONG)
def test_time_is_linear_in_the_length_of_the_text(part: str) -> None:
    def seconds(length: int) -> float:
        text = part * (length // len(part)) + "1234567"
        started = time.process_time()
        redacted(text)
        return time.process_time() - started

    # Four times the text takes four times as long, not sixteen times. A busy machine may double one of them.
    assert seconds(200_000) < 8 * seconds(50_000) + 1
