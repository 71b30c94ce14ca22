"""What a secret looks like: tokens of well-known services, private keys, passwords in URLs, values
without a name.
"""

import re

from train.redaction.names import Grade, grade, words

REDACTED = "[redacted]"

_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{20,}|\bgl(?:pat|dt|rt|cbt|ft|ptt)-[\w-]{16,}"
    r"|\bnpm_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{16,}|\b[srp]k_(?:live|test)_\w{10,}|\bwhsec_[\w+/=]{16,}"
    r"|\bx(?:ox[a-z]|app)-[A-Za-z0-9-]{10,}|\bA(?:KIA|SIA)[A-Z0-9]{16}\b|\bAIza[\w-]{35}|\bya29\.[\w-]{20,}"
    r"|\bGOCSPX-[\w-]{20,}|\bwandb_v\d_\w{16,}|\bpypi-[\w-]{20,}|\bdo[opr]_v1_[a-f0-9]{32,}|\bSG\.[\w-]{16,}\.[\w-]{16,}"
    r"|\bshp(?:at|ss|ca|pa)_[a-fA-F0-9]{32}|\bdapi[a-f0-9]{32}|\bhv[sb]\.[\w-]{20,}|\bpul-[a-f0-9]{40}|\br8_\w{30,}"
    r"|\bgsk_\w{30,}|\bxai-\w{30,}|\bpplx-\w{30,}|\bnvapi-[\w-]{30,}|\btgp_v1_[\w-]{20,}|\blsv2_[ps]t_\w{20,}"
    r"|\bpcsk_\w{20,}|\bATATT3x[\w=-]{20,}|\bdckr_pat_[\w-]{20,}|\bsntry[su]_[\w+/=-]{20,}|\bglsa_\w{30,}"
    r"|\bNRAK-[A-Z0-9]{20,}|\bAGE-SECRET-KEY-1[A-Z0-9]{50,}|\bkey-[a-f0-9]{32}\b|\bSK[a-f0-9]{32}\b"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|\b\d{8,10}:AA[\w-]{33}|(?<![\w$])\$(?:2[aby]|[156y]|argon2\w+)\$[\w./$,=+-]{20,}"
)
_RUN = re.compile(r"\S{18}")
"""No token is shorter."""
KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_KEY_BLOCK = re.compile(rf"{KEY_BEGINS.pattern}[\s\S]*?(?:{KEY_ENDS.pattern}|\Z)")

_USER_IN_URL = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://)[^\s/?#'\"<>]{0,1000}@")
_PASSWORD_IN_URL = re.compile(
    r"(\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://)[^\s/?#'\":@]{0,200}:[^\s'\"<>/]{1,200}@(?=[\w\[])"
)
"""One with `#` or `?` in it, which should have been quoted and was not."""
PASSWORDS = re.compile(r"://[^\s/:@'\"]{0,200}:([^\s/'\"<>]{1,200})@(?=[\w\[])")
_QUERY = re.compile(r"(?P<name>[?&;#](?:amp;)?[\w.~-]{1,100}=)(?P<value>[^&\s#;'\"<>)\]}`\\]+)")
_HOOK = re.compile(
    r"(https://hooks\.slack\.com/(?:services|workflows|triggers)/|https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/"
    r"|https://[\w.-]+\.webhook\.office\.com/webhookb2/)[\w/@-]+"
)
_HEADER = re.compile(
    r"(?i)(\b(?:bearer|basic|digest|token|negotiate)\s+)(?=[^\s'\"]*\d|[\w+/=-]{24})[\w.~+/=:-]{8,}"
)
_LOGIN = re.compile(r"(\s(?:-u|--user|--proxy-user)[\s=]*[\"']?[\w.@-]+:)[^\s\"']+")
"""curl -u me:password"""
_SHORT_OPTION = re.compile(
    r"(\b(?:(?:mysql|mariadb)\w*\b[^\n|;&]{0,200}?\s-p(?=\S)"
    r"|(?:sshpass|(?:docker|podman|az|oc|helm|skopeo)\s+(?:registry\s+)?login)\b[^\n|;&]{0,200}?\s-p[ \t]?(?=[^-\s])"
    r"|redis-cli\b[^\n|;&]{0,200}?\s-a[ \t]+|smbclient\b[^\n|;&]{0,200}?\s-U[ \t]?[\w\\.-]{1,60}%"
    r")[\"']?)[^\s\"']+"
)
"""Programs whose password is behind one letter: mysql -pX, docker login -p X, redis-cli -a X,
smbclient -U me%X.
"""
_PIPED = re.compile(
    r"(\becho[ \t]+(?:-n[ \t]+)?[\"']?)[^\s\"']+(?=[\"']?[ \t]*\|[ \t]*(?:sudo -S|[^\n|]{0,80}-stdin\b))"
)
"""echo X | docker login --password-stdin"""
_WANDB_KEY = re.compile(
    r"(?i)((?:key|login|token|secret)[\"']?\]?(?:\s*[:=,(]|\s+is)?\s*(?:\w{1,40}=)?[\"']?)\b[0-9a-f]{40}\b"
)
"""40 hexadecimal digits are a W&B key after such a word, and else a commit."""

_QUERY_NAMES = words("key sig code hmac token auth st session sid ticket assertion")


def redact_shapes(text: str) -> str:
    """`text` without what is a secret by its looks alone."""
    if "-----BEGIN" in text:
        text = _KEY_BLOCK.sub(REDACTED, text)
    if "://" in text:
        text = _PASSWORD_IN_URL.sub(r"\1", _USER_IN_URL.sub(r"\1", text))
        text = _HOOK.sub(rf"\g<1>{REDACTED}", text)
    text = _QUERY.sub(_hide_in_query, text)
    if _RUN.search(text):  # the lines of steps hold none: 30 us for each
        text = _TOKENS.sub(REDACTED, text)
    text = _HEADER.sub(rf"\g<1>{REDACTED}", text)
    text = _LOGIN.sub(rf"\g<1>{REDACTED}", text)
    if " -" in text:
        text = _PIPED.sub(rf"\g<1>{REDACTED}", _SHORT_OPTION.sub(rf"\g<1>{REDACTED}", text))
    return _WANDB_KEY.sub(rf"\g<1>{REDACTED}", text)


def is_secret_parameter(name: str) -> bool:
    """Of the query of a URL, where `key` and `sig` mean nothing else."""
    plain = name.lower()
    return (
        plain in _QUERY_NAMES
        or grade(name) is not Grade.NO
        or plain.endswith(("-credential", "-signature"))
    )


def _hide_in_query(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    if value.startswith(("${", REDACTED[:-1])) or not is_secret_parameter(
        name.strip("?&;#=").removeprefix("amp;")
    ):
        return match[0]
    return f"{name}{REDACTED}"


_HARMLESS = words(
    "true false none null nil undefined yes no on off auto default required optional str int float "
    "bytes bool any self ... *** **** ***** ****** ******** <pad> <redacted> redacted"
)
_REFERENCE = re.compile(
    r"\$\{[\w.:\[\]]+\}|\$\{?\w+\}?|\$\(.*\)|%\w+%|\{\{.*\}\}|<[\w /-]+>|\*+|\.{3}|x{3,}|X{3,}"
)
"""What names a secret without saying it: ${oc.env:HF_TOKEN}, $TOKEN, {{ secret }}, <your token>,
****.

One with a default, ${oc.env:HF_TOKEN,abc}, may say it.
"""


def is_harmless(value: str) -> bool:
    """Whether a value says no secret, whatever its name is."""
    return (
        not value
        or value.lower() in _HARMLESS
        or _REFERENCE.fullmatch(value) is not None
        or value == REDACTED
    )


def looks_secret(value: str) -> bool:
    """Whether a value looks as if a machine, or somebody who is careful, had made it up.

    Not: words, names, numbers, paths, versions, dates, shapes.
    """
    if (
        len(value) < 8
        or " " in value
        or is_harmless(value)
        or value.startswith(("/", "./", "~", "<"))
    ):
        return False
    letters = sum(letter.isalpha() for letter in value)
    digits = sum(letter.isdigit() for letter in value)
    mixed = any(letter.islower() for letter in value[1:]) and any(
        letter.isupper() for letter in value[1:]
    )
    if (
        re.fullmatch(r"[a-z]+([_-][a-z0-9]+)*|[\d.,:eE+-]+|v?\d+(\.\w+)*|[A-Z0-9_]+", value)
        and digits < 8
    ):
        return False
    return (letters >= 2 and digits >= 2) or (mixed and len(value) >= 16 and value.isalpha())
