"""API keys, access tokens and private keys, in the formats that their issuers document.

The formats were compared with the rules of gitleaks and TruffleHog in November 2026.

A key is recognised by the prefix that its issuer gives it for this purpose. Keys without a prefix look like any other
random text and stay, apart from AWS secret keys after their name.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator

_HEX, _WORD, _URL = "[0-9a-f]", "[A-Za-z0-9]", "[A-Za-z0-9_-]"
# Each line: a format, and where its issuer documents it.
_FORMATS = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # AWS IAM: Unique identifiers
    rf"gh[pousr]_{_WORD}{{36,255}}",  # GitHub: Behind GitHub's new authentication token formats
    rf"github_pat_{_WORD}{{22}}_{_WORD}{{59}}",  # GitHub: fine-grained personal access tokens
    # GitLab: Token overview
    rf"gl(?:pat|oas|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct)-(?:t\d_)?{_URL}{{20,}}(?:(?:\.[0-9a-z]{{2}})?\.[0-9a-z]{{9}})?",
    rf"GR1348941{_URL}{{20,}}",  # GitLab: registration tokens of runners
    rf"(?:xoxe\.)?xox[abeoprs]-(?:{_WORD}+-)+{_WORD}{{16,}}|xapp-\d-{_WORD}+-\d+-{_WORD}{{16,}}",  # Slack: Token types
    rf"hooks\.slack\.com/(?:services|workflows|triggers)/(?:{_WORD}+/)+{_WORD}{{20,}}",  # Slack: Incoming webhooks
    rf"[sr]k_(?:live|test)_{_WORD}{{16,247}}|whsec_[A-Za-z0-9+/]{{32,}}",  # Stripe: API keys; Webhooks
    rf"AIza{_URL}{{35}}|GOCSPX-{_URL}{{28}}|ya29\.{_URL}{{30,}}",  # Google Cloud: API keys; OAuth 2.0
    rf"sk-ant-(?:api|admin|oat)\d\d-{_URL}{{80,}}",  # Anthropic: API keys
    # OpenAI: API keys
    rf"sk-(?:proj|svcacct|service|admin|None)-{_URL}{{40,}}|sk-{_WORD}{{20,}}T3BlbkFJ{_URL}{{20,}}",
    rf"(?:hf|api_org)_{_WORD}{{34,}}",  # Hugging Face: User access tokens
    rf"npm_{_WORD}{{36}}",  # npm: About access tokens
    rf"pypi-AgE{_URL}{{50,}}",  # PyPI: API tokens
    rf"SG\.{_URL}{{22}}\.{_URL}{{43}}",  # SendGrid: API keys
    rf"do[opr]_v1_{_HEX}{{64}}",  # DigitalOcean: personal access tokens
    r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",  # Shopify: access tokens
    rf"sq0(?:atp|csp|idp)-{_URL}{{22,}}",  # Square: access tokens
    rf"hv[sbr]\.{_URL}{{24,}}",  # HashiCorp Vault: Tokens
    rf"{_WORD}{{14}}\.atlasv1\.{_URL}{{60,}}",  # HCP Terraform: API tokens
    rf"gsk_{_WORD}{{52}}",  # Groq
    rf"r8_{_URL}{{37}}",  # Replicate
    rf"dapi{_HEX}{{32}}(?:-\d)?",  # Databricks: personal access tokens
    r"AT(?:ATT3|CTT3xFfG)[A-Za-z0-9_=-]{160,}",  # Atlassian: API tokens of users and organisations
    rf"lin_api_{_WORD}{{40}}",  # Linear
    rf"ntn_{_WORD}{{46}}|secret_{_WORD}{{43}}",  # Notion
    rf"fig(?:[dp]|[uo][rh]?)_{_URL}{{40,}}",  # Figma
    rf"dckr_(?:pat|oat)_{_URL}{{27,}}",  # Docker: personal access tokens
    r"NRAK-[A-Z0-9]{27}",  # New Relic: API keys
    rf"gl(?:sa_{_WORD}{{32}}_[0-9a-fA-F]{{8}}|c_eyJ[A-Za-z0-9+/=]{{30,}})",  # Grafana: service account tokens
    rf"PMAK-{_HEX}{{24}}-{_HEX}{{34}}",  # Postman
    rf"rubygems_{_HEX}{{48}}",  # RubyGems: API keys
    rf"pscale_(?:tkn|pw|oauth)_{_URL}{{32,}}",  # PlanetScale
    rf"tskey-[a-z]+-{_WORD}+-{_WORD}{{20,}}",  # Tailscale: Key prefixes
    r"sntry[su]_[A-Za-z0-9+/=_-]{40,}",  # Sentry: auth tokens
    r"sbp_[0-9a-z]{40}",  # Supabase: access tokens
    r"xai-[A-Za-z0-9_]{80}",  # xAI
    rf"lsv2_(?:pt|sk)_{_HEX}{{32}}_{_HEX}{{10}}",  # LangSmith
    r"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}",  # age, its specification
    rf"\d{{8,10}}:AA{_URL}{{33}}",  # Telegram: Bot API
)
_KEY = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(_FORMATS)})(?![A-Za-z0-9])")
_AWS_SECRET = re.compile(
    r"(?i:aws[\w.-]{0,20}secret[\w.-]{0,20}|secret_?access_?key)[\"']?\s{0,4}(?:=>|[=:])\s{0,4}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
)
_AWS_REST = 80  # characters of a key and the signs before it
NAMES = (re.compile("ecret"), re.compile("ECRET"))
"""They find the lines that may name a secret key."""
_TOKEN = re.compile(rf"(?<![A-Za-z0-9_-])(eyJ{_URL}{{8,}})\.{_URL}{{4,}}\.{_URL}*(?:\.{_URL}+\.{_URL}+)?")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<kind>(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:.{0,16384}?-----END (?P=kind)-----|(?:(?:\\[nrt]|\s|[\"'+,])*[A-Za-z0-9+/=]{16,})*)",
    re.DOTALL,
)

# They find every part of a text with a key or token, and few others. Each begins with a sign that `re` finds quickly,
# except the first, which is tried within long runs of its signs only.
_LIKELY_RUN = re.compile(r"[_-](?=[A-Za-z0-9_-]{16})(?:[A-Za-z_-]{0,25}+[0-9]|[A-Za-z]{20})")
_LIKELY = (
    re.compile(r"\.(?:eyJ|(?<=[Gsbr19].)[A-Za-z0-9_-]{20})"),
    re.compile(r"A(?:KIA|SIA|BIA|CCA|Iza|T[AC]TT)[A-Za-z0-9_-]{16}"),
    re.compile(r":AA[A-Za-z0-9_-]{30}"),
    re.compile(r"hooks\.slack\.com/"),
    re.compile(r"GR1348941"),
)
_DATABRICKS = re.compile(r"dapi[0-9a-f]{32}")


def may_be_key(text: str, start: int, end: int) -> bool:
    """True if a run of letters, digits, dashes and underscores may hold a key."""
    return _LIKELY_RUN.search(text, start, end) is not None


def likely(text: str) -> Iterator[re.Pattern[str]]:
    """Patterns that find further lines of a text to search for keys."""
    yield from _LIKELY
    if "dapi" in text:
        yield _DATABRICKS


def api_keys(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Keys and tokens with a prefix, and JSON Web Tokens, between two positions of a text."""
    for match in _KEY.finditer(text, start, end):
        yield match.span()
    for match in _TOKEN.finditer(text, start, end):
        if _is_header(match[1]):
            yield match.span()


def aws_secret_keys(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Secret access keys of AWS after their name, which is between two positions; the key may be on the next line."""
    for match in _AWS_SECRET.finditer(text, start, end + _AWS_REST):
        yield match.span(1)


def private_keys(text: str) -> Iterator[tuple[int, int]]:
    """Private keys in PEM (RFC 7468), OpenSSH's and PGP's blocks among them, from their first to their last line."""
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield match.span()


def _is_header(part: str) -> bool:
    """True for the first part of a JSON Web Token (RFC 7519): a JSON object with an algorithm, in base64url."""
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError):
        return False
    return isinstance(header, dict) and "alg" in header
