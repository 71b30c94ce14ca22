"""What a secret looks like by itself: tokens of services, private keys, passwords in URLs."""

import re

from train.redaction.names import Grade, grade, words

REDACTED = "[redacted]"

_TOKENS = {
    "Hugging Face": r"\bhf_[A-Za-z0-9]{16,}",
    # Personal, OAuth, user-to-server, server-to-server, refresh.
    "GitHub": r"\bgh[pousr]_[A-Za-z0-9]{16,}",
    "GitHub, fine-grained": r"\bgithub_pat_\w{20,}",
    # Personal, deploy, runner, CI build, feed, trigger.
    "GitLab": r"\bgl(?:pat|dt|rt|cbt|ft|ptt)-[\w-]{16,}",
    "npm": r"\bnpm_[A-Za-z0-9]{30,}",
    "OpenAI, Anthropic and others": r"\bsk-[A-Za-z0-9_-]{16,}",
    "Stripe": r"\b[srp]k_(?:live|test)_\w{10,}",
    "signing secret of a webhook (Stripe, Svix)": r"\bwhsec_[\w+/=]{16,}",
    "Slack": r"\bx(?:ox[a-z]|app)-[A-Za-z0-9-]{10,}",
    "AWS access key": r"\bA(?:KIA|SIA)[A-Z0-9]{16}\b",
    "Google API key": r"\bAIza[\w-]{35}",
    "Google OAuth token": r"\bya29\.[\w-]{20,}",
    "Google OAuth client": r"\bGOCSPX-[\w-]{20,}",
    "W&B": r"\bwandb_v\d_\w{16,}",
    "PyPI": r"\bpypi-[\w-]{20,}",
    "DigitalOcean": r"\bdo[opr]_v1_[a-f0-9]{32,}",
    "SendGrid": r"\bSG\.[\w-]{16,}\.[\w-]{16,}",
    "Shopify": r"\bshp(?:at|ss|ca|pa)_[a-fA-F0-9]{32}",
    "Databricks": r"\bdapi[a-f0-9]{32}",
    "HashiCorp Vault": r"\bhv[sb]\.[\w-]{20,}",
    "Pulumi": r"\bpul-[a-f0-9]{40}",
    "Replicate": r"\br8_\w{30,}",
    "Groq": r"\bgsk_\w{30,}",
    "xAI": r"\bxai-\w{30,}",
    "Perplexity": r"\bpplx-\w{30,}",
    "NVIDIA": r"\bnvapi-[\w-]{30,}",
    "Together": r"\btgp_v1_[\w-]{20,}",
    "LangSmith": r"\blsv2_[ps]t_\w{20,}",
    "Pinecone": r"\bpcsk_\w{20,}",
    "Atlassian": r"\bATATT3x[\w=-]{20,}",
    "Docker Hub": r"\bdckr_pat_[\w-]{20,}",
    "Sentry": r"\bsntry[su]_[\w+/=-]{20,}",
    "Grafana": r"\bglsa_\w{30,}",
    "New Relic": r"\bNRAK-[A-Z0-9]{20,}",
    "age": r"\bAGE-SECRET-KEY-1[A-Z0-9]{50,}",
    "Mailgun": r"\bkey-[a-f0-9]{32}\b",
    "Twilio": r"\bSK[a-f0-9]{32}\b",
    "JSON web token": r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    "Telegram bot": r"\b\d{8,10}:AA[\w-]{33}",
    # As in /etc/shadow: bcrypt, MD5, SHA-256, SHA-512, yescrypt, argon2.
    "hash of a password": r"(?<![\w$])\$(?:2[aby]|[156y]|argon2\w+)\$[\w./$,=+-]{20,}",
}
"""{whose token it is: its shape}"""
_TOKEN = re.compile("|".join(_TOKENS.values()))
_RUN = re.compile(r"\S{18}")
"""No token is shorter. A quick test: most texts hold no such run, and _TOKEN takes 30 us a line."""

# -----BEGIN OPENSSH PRIVATE KEY-----, -----BEGIN PGP PRIVATE KEY BLOCK-----
KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_KEY_BLOCK = re.compile(rf"{KEY_BEGINS.pattern}[\s\S]*?(?:{KEY_ENDS.pattern}|\Z)")

_SCHEME = r"\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://"
_USER_IN_URL = re.compile(rf"({_SCHEME})[^\s/?#'\"<>]{{0,1000}}@")
"""postgres://me:password@host"""
_PASSWORD_IN_URL = re.compile(rf"({_SCHEME})[^\s/?#'\":@]{{0,200}}:[^\s'\"<>/]{{1,200}}@(?=[\w\[])")
"""One with `#` or `?` in it, which should have been quoted and was not."""
PASSWORDS = re.compile(r"://[^\s/:@'\"]{0,200}:([^\s/'\"<>]{1,200})@(?=[\w\[])")
"""The password alone, where the texts are to be remembered."""
_QUERY = re.compile(
    r"(?P<name>[?&;#](?:amp;)?[\w.~-]{1,100}=)"  # ?sig=, &amp;sig= in HTML
    r"(?P<value>[^&\s#;'\"<>)\]}`\\]+)"
)
"""A parameter of a URL."""
_HOOK = re.compile(
    r"("
    r"https://hooks\.slack\.com/(?:services|workflows|triggers)/"
    r"|https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/"
    r"|https://[\w.-]+\.webhook\.office\.com/webhookb2/"  # Microsoft Teams
    r")[\w/@-]+"
)
"""Addresses of webhooks: whoever knows one may post."""
_HEADER = re.compile(
    r"(?i)(\b(?:bearer|basic|digest|token|negotiate)\s+)"
    r"(?=[^\s'\"]*\d|[\w+/=-]{24})"  # no word of prose: it holds a digit, or is long
    r"[\w.~+/=:-]{8,}"
)
"""Authorization: Bearer X"""
_LOGIN = re.compile(r"(\s(?:-u|--user|--proxy-user)[\s=]*[\"']?[\w.@-]+:)[^\s\"']+")
"""curl -u me:password"""
_SHORT_OPTION = re.compile(
    r"(\b(?:"
    r"(?:mysql|mariadb)\w*\b[^\n|;&]{0,200}?\s-p(?=\S)"  # mysql -pX
    r"|(?:sshpass|(?:docker|podman|az|oc|helm|skopeo)\s+(?:registry\s+)?login)"
    r"\b[^\n|;&]{0,200}?\s-p[ \t]?(?=[^-\s])"  # docker login -p X, sshpass -p X
    r"|redis-cli\b[^\n|;&]{0,200}?\s-a[ \t]+"  # redis-cli -a X
    r"|smbclient\b[^\n|;&]{0,200}?\s-U[ \t]?[\w\\.-]{1,60}%"  # smbclient -U me%X
    r")[\"']?)[^\s\"']+"
)
"""Programs whose password is behind one letter."""
_PIPED = re.compile(
    r"(\becho[ \t]+(?:-n[ \t]+)?[\"']?)[^\s\"']+"
    r"(?=[\"']?[ \t]*\|[ \t]*(?:sudo -S|[^\n|]{0,80}-stdin\b))"
)
"""echo X | docker login --password-stdin"""
_WANDB_KEY = re.compile(
    r"(?i)((?:key|login|token|secret)[\"']?\]?"
    r"(?:\s*[:=,(]|\s+is)?\s*"
    r"(?:\w{1,40}=)?[\"']?)"  # wandb.login(key="X")
    r"\b[0-9a-f]{40}\b"
)
"""40 hexadecimal digits are a W&B key after such a word, and else a commit."""

_QUERY_NAMES = words("key sig code hmac token auth st session sid ticket assertion")


def redact_shapes(text: str) -> str:
    """`text` without what is a secret by its looks alone."""
    if "-----BEGIN" in text:
        text = _KEY_BLOCK.sub(REDACTED, text)
    if "://" in text:
        text = _USER_IN_URL.sub(r"\1", text)
        text = _PASSWORD_IN_URL.sub(r"\1", text)
        text = _HOOK.sub(rf"\g<1>{REDACTED}", text)
    text = _QUERY.sub(_redact_parameter, text)
    if _RUN.search(text):
        text = _TOKEN.sub(REDACTED, text)
    text = _HEADER.sub(rf"\g<1>{REDACTED}", text)
    text = _LOGIN.sub(rf"\g<1>{REDACTED}", text)
    if " -" in text:
        text = _SHORT_OPTION.sub(rf"\g<1>{REDACTED}", text)
        text = _PIPED.sub(rf"\g<1>{REDACTED}", text)
    return _WANDB_KEY.sub(rf"\g<1>{REDACTED}", text)


def is_secret_parameter(name: str) -> bool:
    """Of the query of a URL, where `key` and `sig` mean nothing else."""
    plain = name.lower()
    return (
        plain in _QUERY_NAMES
        or grade(name) is not Grade.NO
        or plain.endswith(("-credential", "-signature"))
    )


def _redact_parameter(match: re.Match[str]) -> str:
    name = match["name"].strip("?&;#=").removeprefix("amp;")
    # ${...} names a secret, and the other begins what is redacted already.
    names_one = match["value"].startswith(("${", REDACTED[:-1]))
    if names_one or not is_secret_parameter(name):
        return match[0]
    return f"{match['name']}{REDACTED}"


_HARMLESS = words(
    "true false none null nil undefined yes no on off auto default required optional str int float "
    "bytes bool any self ... *** **** ***** ****** ******** <pad> <redacted> redacted"
)
_REFERENCE = re.compile(
    r"\$\{[\w.:\[\]]+\}"  # ${oc.env:HF_TOKEN}; with a default after a comma it may hold a secret
    r"|\$\{?\w+\}?"  # $TOKEN
    r"|\$\(.*\)"  # $(cat token)
    r"|%\w+%"  # %TOKEN%
    r"|\{\{.*\}\}"  # {{ secrets.token }}
    r"|<[\w /-]+>"  # <your token>
    r"|\*+|\.{3}|x{3,}|X{3,}"  # ****
)
"""What names a secret without holding it."""


def is_harmless(value: str) -> bool:
    """Whether a value holds no secret, whatever its name is."""
    return (
        not value
        or value.lower() in _HARMLESS
        or _REFERENCE.fullmatch(value) is not None
        or value == REDACTED
    )


_ORDINARY = re.compile(
    r"[a-z]+([_-][a-z0-9]+)*"  # words: layer_norm-2
    r"|[\d.,:eE+-]+"  # numbers, times, shapes
    r"|v?\d+(\.\w+)*"  # versions
    r"|[A-Z0-9_]+"  # names of variables
)


def looks_secret(value: str) -> bool:
    """Whether a value looks as if a machine, or somebody who is careful, had made it up.

    Not: words, names, numbers, paths, versions, dates, shapes.
    """
    is_path = value.startswith(("/", "./", "~", "<"))
    if len(value) < 8 or " " in value or is_harmless(value) or is_path:
        return False
    letters = sum(letter.isalpha() for letter in value)
    digits = sum(letter.isdigit() for letter in value)
    if digits < 8 and _ORDINARY.fullmatch(value):
        return False
    if letters >= 2 and digits >= 2:
        return True
    # The first letter aside, which is large in a name.
    has_small = any(letter.islower() for letter in value[1:])
    has_large = any(letter.isupper() for letter in value[1:])
    return has_small and has_large and len(value) >= 16 and value.isalpha()
