"""No secret leaves the machine: nothing is written or sent before it went through `redact`. Pure.

Three nets, because each has holes: names (`api_key: ...`), values that are known to be secret (from the environment or
from under such a name), and the shapes of well-known tokens.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"
SHORTEST = 8
"""A known value with fewer characters is not searched for: it would hit ordinary words."""

_SECRET_NAME = re.compile(
    r"(secrets?|passwords?|passwd|passphrase|passcode|credentials?|authorization|signature|cookie|dsn"
    r"|(api|access|secret|private|signing|encryption|account|deploy|ssh)keys?|accesskeyid|secretid|connectionstring"
    r"|webhook(url)?|token|auth)$"
)
_TEXT_ONLY = re.compile(r"(token|auth|signature|cookie)$")
"""Names that also stand before a number or a switch: `max_token: 5`, `auth: true`."""
_SPECIAL_TOKEN = re.compile(
    r"(pad|eos|bos|unk|sep|cls|mask|image|video|audio|start|end|stop|begin|first|last|next|per|special|max|min|num)token$"
)
"""A tokenizer's `pad_token` is no secret."""
_INTERPOLATION = re.compile(r"\$\{[\w.:]+\}")
"""A reference such as ${oc.env:HF_TOKEN} names a secret without telling it; one with a default may tell it."""

_USER_IN_URL = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://)[^\s/?#'\"]{0,1000}@")
_NAMED = re.compile(
    # A whole word that may be a secret name (looked at before anything else: a patch has many thousand other words),
    r"(?<![\w.-])(?=[\w.-]{0,200}?(?i:key|token|secret|pass|auth|credential|signature|cookie|dsn|string|webhook))"
    # as `name = value`, `name: value`, `"name": value`, `['name'] = value` or `name: str = "value"`,
    r"""(?P<name>[\w.-]{1,200})"""
    r"""(?P<joint>\\?["']?\]?\s{0,3}(?::\s{0,3}[\w.\[\]| ]{1,60}=\s{0,3}(?=["'])|[=:]\s{0,3}))"""
    # where the value is quoted, a mapping, a list, or goes on to the next space.
    r"""(?P<value>\\?"(?:[^"\\]|\\.){0,5000}"|'[^']{0,5000}'|\{[^}]{0,5000}\}|\[[^\]]{0,5000}\]|\S+)"""
)
_OPTION = re.compile(r"(?P<name>(?<!\S)--?[A-Za-z][\w.-]{0,200})(?P<joint>\s+)(?P<value>(?!-)\S+)")
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bnpm_[A-Za-z0-9]{30,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}|\bxox[a-z]-[A-Za-z0-9-]{10,}|\bA(?:KIA|SIA)[A-Z0-9]{16}\b|\bAIza[\w-]{35}|\bwandb_v\d_\w{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|\bpypi-[\w-]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_AFTER_A_WORD = re.compile(
    r"(?i)(\b(?:bearer|basic)\s+)(?=\S*\d)[\w.~+/=-]{8,}"
    r"|((?:key|login|token|secret)[\"']?(?:\s*[:=]|\s+is)?\s*[\"']?)\b[0-9a-f]{40}\b"
)
"""`Bearer ...` of an HTTP header; 40 hexadecimal digits are a W&B key after such a word, and else a commit."""


def is_secret_name(name: str) -> bool:
    """Whether a key, an option or a variable of this name holds a secret: api_key, hfToken, AWS_SECRET_ACCESS_KEY."""
    last = name.rpartition(".")[2]
    plain = re.sub(r"[^a-z0-9]", "", last.lower()).rstrip("0123456789")
    if plain.endswith("auth") and re.split(r"[^a-z0-9]+", last.lower())[-1] not in ("auth", "oauth"):
        return False  # a word that only ends so
    return bool(_SECRET_NAME.search(plain)) and not _SPECIAL_TOKEN.search(plain)


def redact(value: Any, secrets: Collection[str]) -> Any:
    """`value` without secrets: a copy of its mappings, lists and strings; other things are returned as they are.

    `secrets`: values to remove wherever they stand, see secret_values and secrets_in.
    """
    return _redact(value, _known(secrets))


def redacted(value: Any) -> Any:
    """`value` without the secrets of this process's environment, nor its own."""
    return redact(value, secret_values(os.environ) | secrets_in(value))


def redact_code(text: str, secrets: Collection[str]) -> str:
    """As redact, for Python: after a secret name only a text in quotes goes; `token = next(tokens)` stays."""
    return _redact_text(text, _known(secrets), _hide_literal)


def secret_values(environ: Mapping[str, str]) -> frozenset[str]:
    """The secrets in environment variables: those with such a name, and the passwords in URLs."""
    found = [value.strip() for name, value in environ.items() if is_secret_name(name)]
    for value in environ.values():
        found += re.findall(r"://[^\s/:@]*:([^\s/@]+)@", value)
    return frozenset(value for value in found if len(value) >= SHORTEST)


def secrets_in(value: Any) -> frozenset[str]:
    """The texts under secret names in a nested value, such as a config: they may turn up again in an error message."""
    return frozenset(
        text for text in _secrets_in(value) if len(text) >= SHORTEST and not _INTERPOLATION.fullmatch(text)
    )


def _secrets_in(value: Any, named: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets_in(item, named or is_secret_name(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item, named)
    elif named and isinstance(value, str):
        yield value


def _known(secrets: Collection[str]) -> re.Pattern[str] | None:
    """Finds the known values, also as they look inside a URL or inside JSON; the longest first."""
    looks = {
        look for secret in secrets if secret for look in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])
    }
    return re.compile("|".join(re.escape(look) for look in sorted(looks, key=len, reverse=True))) if looks else None


def _redact(value: Any, known: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        return _redact_text(value, known)
    if isinstance(value, Mapping):
        return {
            _redact_text(key, known) if isinstance(key, str) else key: (
                REDACTED if _holds_secret(str(key), item) else _redact(item, known)
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            REDACTED if _is_argument_of(before, item) else _redact(item, known)
            for before, item in zip((None, *value), value, strict=False)
        ]
    return value


def _holds_secret(name: str, value: Any) -> bool:
    if not is_secret_name(name) or value is None or isinstance(value, bool) or value in ("", {}, []):
        return False
    if isinstance(value, str):
        return not _INTERPOLATION.fullmatch(value)
    return not (isinstance(value, int | float) and _TEXT_ONLY.search(name.lower()))


def _is_argument_of(option: Any, value: Any) -> bool:
    """Whether two neighbours in a command line are `--password` and its value."""
    return (
        isinstance(option, str)
        and isinstance(value, str)
        and re.fullmatch(r"--?[A-Za-z][\w.-]*", option) is not None
        and not value.startswith("-")
        and is_secret_name(option)
    )


def _redact_text(text: str, known: re.Pattern[str] | None, hide: Callable[[re.Match[str]], str] | None = None) -> str:
    if known:
        text = known.sub(REDACTED, text)
    text = _USER_IN_URL.sub(r"\1", text)
    text = _SHAPES.sub(REDACTED, text)
    text = _AFTER_A_WORD.sub(lambda match: f"{match[1] or match[2]}{REDACTED}", text)
    return _OPTION.sub(_hide_value, _sub_overlapping(_NAMED, hide or _hide_value, text))


def _sub_overlapping(pattern: re.Pattern[str], hide: Callable[[re.Match[str]], str], text: str) -> str:
    """As re.sub, but where nothing is hidden the search goes on with the value: `author: token=x` has two pairs."""
    parts, place = [], 0
    while match := pattern.search(text, place):
        hidden, end = hide(match), match.end()
        if hidden == match[0]:
            end = match.start("value")
            hidden = text[match.start() : end]
        parts += [text[place : match.start()], hidden]
        place = end
    return "".join([*parts, text[place:]])


def _hide_value(match: re.Match[str]) -> str:
    name, joint, value = match["name"], match["joint"], match["value"]
    inside = value.strip("\\\"'")
    prose = ":" in joint and len(inside) < SHORTEST and _TEXT_ONLY.search(name.lower())  # unexpected token: }
    harmless = not inside or inside.lower() in ("true", "false", "none", "null", REDACTED)
    if harmless or prose or not is_secret_name(name) or _INTERPOLATION.fullmatch(inside):
        return match[0]
    if inside.isdecimal() and _TEXT_ONLY.search(name.lower()):
        return match[0]
    quotes = re.match(r"\\?[\"']", value)
    mark = quotes[0] if quotes else ""
    return f"{name}{joint}{mark}{REDACTED}{mark}"


def _hide_literal(match: re.Match[str]) -> str:
    return _hide_value(match) if match["value"].lstrip("\\")[:1] in ("'", '"') else match[0]
