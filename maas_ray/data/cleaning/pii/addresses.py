"""E-mail and IP addresses."""

import ipaddress
import re
from collections.abc import Iterator

from maas_ray.data.cleaning.pii.characters import ALPHANUMERIC, LETTER, WORD

_AT = re.compile("@")
_ANY_AT = re.compile(r"@|%40|&#(?:0*64|x0*40);|\\u0040")


def at_signs(text: str) -> re.Pattern[str]:
    """Finds the signs of addresses: `@`, and if the text has them, the ways in which URLs, HTML and JSON write it."""
    return _ANY_AT if "%40" in text or "&#" in text or "\\u0040" in text else _AT


# Top-level domains in scripts without spaces, after which a text goes on without a sign (IANA's root zone, 2026).
_UNSPACED_DOMAINS = (
    "中国|中國|公司|网络|網絡|网址|网店|网站|在线|中文网|商城|商店|商标|集团|企业|信息|政府|政务|公益|机构|组织机构|香港|台湾|台灣|新加坡|澳門"
    "|手机|移动|游戏|健康|广东|佛山|我爱你|娱乐|新闻|招聘|时尚|购物|食品|餐厅|慈善|書籍|通販|家電|世界"
    "|コム|みんな|ストア|セール|ポイント|クラウド|ファッション|닷컴|닷넷|한국|삼성|ไทย|คอม|ລາວ"
)
_PUNYCODE = r"xn--[A-Za-z0-9-]{1,58}[A-Za-z0-9]"
_DOMAIN = re.compile(
    rf"((?:{ALPHANUMERIC}(?:(?:{WORD}|-){{0,61}}{ALPHANUMERIC})?\.)+(?:{_PUNYCODE}|{LETTER}{{2,24}}))"
    rf"(?!{ALPHANUMERIC}|_{ALPHANUMERIC})"
)
_UNSPACED_DOMAIN = re.compile(
    rf"((?:\w(?:[\w-]{{0,61}}\w)?\.)+(?:{_PUNYCODE}|[A-Za-z]{{2,24}}|{_UNSPACED_DOMAINS}))(?!{ALPHANUMERIC})"
)
# Forms that people use, not all that RFC 5321 allows: other signs are around addresses more often than in them. Some
# Japanese providers allow a point before the @.
_LOCAL = re.compile(rf"(?<!{WORD})(?<!\.){WORD}(?:(?:{WORD}|[.+%&'-])*(?:{WORD}|[.+-]))?$")
_UNSPACED_LOCAL = re.compile(r"(?<!\w)(?<!\.)\w(?:[\w.+%&'-]*[\w+.-])?$")
_MAX_LOCAL = 64
# Top-level domains that tell an address from Python's operator: `john@acme.com(work)`, `a@b.mean(axis=0)`.
_GENERIC = frozenset(
    {"com", "org", "net", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "museum", "coop", "aero", "jobs"}
    | {
        "mobi",
        "travel",
        "tel",
        "cat",
        "asia",
        "app",
        "dev",
        "online",
        "site",
        "shop",
        "store",
        "tech",
        "cloud",
        "email",
    }
    | {"xyz", "uk", "eu"}
)
_METHODS = frozenset({"at", "eq", "ge", "gt", "id", "is", "lt", "mm", "mv", "ne", "to"})
_CODE = re.compile(rf"[(\[=]|\.{ALPHANUMERIC}")
_NUMBERED = re.compile(r"\d+\.\d")


def email_addresses(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Addresses of people and lists, also internationalised ones. The operator `@` and Git remotes do not count."""
    for sign in _ANY_AT.finditer(text, start, end):
        before = text[max(start, sign.start() - _MAX_LOCAL - 1) : sign.start()]
        local = _LOCAL.search(before) or _UNSPACED_LOCAL.search(before)
        domain = _DOMAIN.match(text, sign.end(), end) or _UNSPACED_DOMAIN.match(text, sign.end(), end)
        if not local or not domain or ".." in local[0] or _NUMBERED.match(domain[1]):
            continue
        stop = domain.end(1)
        if _CODE.match(text, stop, end) and not _is_known(domain[1].rpartition(".")[2]):
            continue
        if local[0] == "git" and text[stop : stop + 1] in (":", "/"):
            continue
        yield sign.start() - len(local[0]), stop


def _is_known(top_level: str) -> bool:
    from phonenumbers import SUPPORTED_REGIONS

    name = top_level.lower()
    if name in _METHODS:
        return False
    return name in _GENERIC or name.upper() in SUPPORTED_REGIONS or name.startswith("xn--") or not name.isascii()


_IPV4 = re.compile(
    rf"(?<!{WORD})(?<![.+-])(?<!\d:)(?:(?<=//)|(?<!/))(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){{3}}"
    rf"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?!{WORD}|[+-]|\.{WORD}|/\d{{1,2}}(?!\d))"
)
# Four numbers with points are a version, or an object identifier, if a word before them says so.
_VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|version|release|rev|revision|build|firmware|oid|objectidentifier|section|chapter)s?\b|[=<>~^]=?)"
    r"[ :(\"'=]*$"
)
# Small numbers are versions more often than addresses. Such a word, or a port after them, makes them an address.
_HOST = re.compile(
    r"(?i)(?:\b(?:ips?|ipv4|addr|address|host|server|client|from|peer|remote|ping|gateway|dns)\b|//"
    r"|服务器|伺服器|地址|主机|サーバー?|アドレス|서버|주소)[^0-9<>]{0,12}$"
)
_PORT = re.compile(r":\d{2,5}\b")
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6_PART = re.compile(r"[0-9A-Fa-f:.]*")
_BESIDE = re.compile(WORD)
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
    while colons := COLONS.search(text, place, end):
        first, last = colons.start(), colons.end()
        while first > max(start, colons.start() - 40) and text[first - 1] in "0123456789abcdefABCDEF:":
            first -= 1
        last = max(last, _IPV6_PART.match(text, colons.start(), min(end, first + 60)).end())  # type: ignore[union-attr]
        candidate = text[first:last].rstrip(".")
        place = max(last, colons.end())
        whole = (first == 0 or not (_BESIDE.match(text, first - 1) or text[first - 1] == ".")) and not _BESIDE.match(
            text, last
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
