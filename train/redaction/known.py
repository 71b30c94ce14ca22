"""The values that are known to be secret in this process, and each form in which they may turn up.

They come from variables with a secret's name, from files in which well-known tools keep their
credentials, and from whatever `learn` was given: configs, command lines.
"""

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus

from train.redaction.names import Grade, grade, words
from train.redaction.shapes import PASSWORDS, REDACTED, is_harmless, looks_secret

SHORTEST, SHORTEST_INSIDE = 4, 8
"""Characters of a value that is searched for as a whole word, and of one that is searched for
inside of others.

Anything shorter would hit ordinary text; it still goes where it stands behind its name.
"""
LARGEST_FILE = 100_000
ORDINARY = words(
    "true false none null auto test train eval data model task loss step steps batch micro epoch "
    "epochs seed name names main mean size type text file files line user users admin root local "
    "localhost default basic bearer token tokens secret password label input inputs output outputs "
    "value values standard accumulate required disabled enabled offline online digits linear "
    "cosine constant adamw python torch cuda fp32 fp16 bf16 fp64 float32 float64 bfloat16 http "
    "https info debug error warning finished failed stopped public private string number optional "
    "example config cache isobatch local_files_only classification regression causal_lm"
)
"""Words of our own lines: whoever has such a password has none."""


@dataclass(frozen=True)
class _Look:
    """A form of a secret: what must be in a text for `pattern` to match there."""

    probe: str
    pattern: str


class Known:
    """Secret values, and a text without them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._learned: set[str] = set()
        self._environment: dict[bytes, bytes] | None = None
        self._looks: list[_Look] = []
        self._looked_up = 0

    def add(self, values: Iterable[str]) -> None:
        self._learned |= {text for value in values for text in _pieces(value)}

    def remove_from(self, text: str) -> str:
        self._update()
        shapes = [look.pattern for look in self._looks if look.probe in text]
        if "\n" in text:
            flat = _BREAK.sub("", text)
            broken = (look for look in self._looks if look.probe not in text and look.probe in flat)
            shapes += [
                _over_lines(look.probe) for look in broken if len(look.probe) >= SHORTEST_INSIDE
            ]
        return re.sub("|".join(shapes), REDACTED, text) if shapes else text

    def _update(self) -> None:
        """The environment may change at any moment: a module of the user's may load a .env."""
        now: dict[bytes, bytes] = getattr(os.environ, "_data", {})
        if now == self._environment and len(self._learned) == self._looked_up:
            return
        if self._environment is None:
            self.add(_kept_by_tools())
        self._environment, self._looked_up = dict(now), len(self._learned)
        values = self._learned.union(
            *(_pieces(value) for value in of_environment(os.environ.items()))
        )
        found = {look.pattern: look for value in values for look in _looks(value)}
        self._looks = sorted(found.values(), key=lambda look: len(look.probe), reverse=True)


def of_environment(variables: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The secrets in environment variables: those with such a name, and the passwords in URLs."""
    for name, value in variables:
        rank = grade(name)
        named = rank in (Grade.SURE, Grade.NUMBERED) or (
            rank is Grade.MAYBE and looks_secret(value)
        )
        is_file = value.startswith("/") and Path(value).exists()  # GOOGLE_APPLICATION_CREDENTIALS
        if named and not is_file:
            yield value
        yield from PASSWORDS.findall(value)


def _pieces(value: str) -> set[str]:
    """A value as it is searched for; of one with several lines, each long line too."""
    value = value.strip()
    lines = [line.strip() for line in value.splitlines()]
    long = [line for line in lines if len(line) >= 16 and not line.startswith("-----")]
    return {text for text in (value, *(long if len(lines) > 1 else ())) if _is_searched_for(text)}


def _is_searched_for(value: str) -> bool:
    if len(value) < SHORTEST or is_harmless(value) or value.lower() in ORDINARY:
        return False
    return not (value.isdecimal() and len(value) < 6)  # a number like that is in every row


@lru_cache(maxsize=1_000)
def _looks(value: str) -> tuple[_Look, ...]:
    """The forms of a value: in a URL, in JSON, in Python, in HTML, in a shell, in base64 and in
    hexadecimal.
    """
    forms = {
        value,
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
    }
    forms |= {
        html.escape(value),
        value.replace("'", "'\"'\"'"),
        value.replace("'", "''"),
        value.replace("$", "$$"),
    }
    forms |= {json.dumps(form)[1:-1] for form in (*forms,)}
    if len(value) < SHORTEST_INSIDE:
        return tuple(
            _Look(form, rf"(?<![A-Za-z0-9_]){re.escape(form)}(?![A-Za-z0-9_])") for form in forms
        )
    forms |= _encoded(value.encode())
    looks = [_Look(form, re.escape(form)) for form in forms]
    pieces = value.split()
    if len(pieces) > 1:
        gap = r"(?:\\n|\s)+(?:[+\- ]\s*)?"
        looks.append(_Look(max(pieces, key=len), gap.join(map(re.escape, pieces))))
    if len(value) >= 12 and "://" not in value[:12]:
        # As reprlib shortens it: the first letters, dots, the last ones.
        looks.append(
            _Look(
                value[:8], rf"{re.escape(value[:8])}[^\s'\"]{{0,200}}?(?:\.\.\.|…)[^\s'\"]{{0,60}}"
            )
        )
    return tuple(looks)


def _encoded(value: bytes) -> set[str]:
    """In hexadecimal, and in base64, at whatever place of what is encoded it stands."""
    found = {value.hex(), value.hex().upper()}
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + value).decode()
        # The letters that depend on the neighbours are left out.
        start = (0, 2, 3)[before]
        end = len(whole.rstrip("=")) - (1 if (before + len(value)) % 3 else 0)
        inner = whole[start:end]
        if len(inner) >= SHORTEST_INSIDE:
            found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return found


_BREAK = re.compile(r"\\?\n[+\- ]?[ \t]*(?:#[ \t]*|[\"'])?")


def _over_lines(value: str) -> str:
    """A value that something has broken into lines."""
    gap = r"(?:\\?\n[+\- ]?[ \t]*(?:#[ \t]*|[\"'])?)?"
    return gap.join(map(re.escape, value))


# Files of well-known tools


def _kept_by_tools() -> Iterator[str]:
    home = Path("~").expanduser()
    environment = os.environ
    hub = Path(environment.get("HF_HOME", home / ".cache" / "huggingface"))
    yield from _text(Path(environment.get("HF_TOKEN_PATH", hub / "token"))).split()
    wandb = Path(environment.get("WANDB_CONFIG_DIR", home / ".config" / "wandb"))
    netrc = (
        [Path(environment["NETRC"])]
        if environment.get("NETRC")
        else [home / ".netrc", home / "_netrc"]
    )
    for file in netrc:
        yield from re.findall(r"\bpassword\s+(\S+)", _text(file))
    for file in (
        hub / "stored_tokens",
        wandb / "settings",
        Path("wandb/settings"),
        home / ".aws" / "credentials",
    ):
        for line in _text(file).splitlines():
            name, _, value = line.partition("=")
            if grade(name.strip()) is not Grade.NO:
                yield value.strip()


def _text(file: Path) -> str:
    """Of an ordinary file that can be read, else nothing."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            return ""
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
