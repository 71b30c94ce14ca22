"""The values that are known to be secret in this process, in each form in which they may turn up.

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

SHORTEST = 4
"""Characters of a value that is searched for as a whole word.

A shorter one would hit ordinary text; it is still redacted behind its name.
"""
SHORTEST_INSIDE = 8
"""Characters of a value that is searched for inside of words as well."""
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
"""Words of the lines that this package prints: whoever has such a password has none."""


@dataclass(frozen=True)
class _Form:
    """A form of a secret."""

    probe: str
    """What a text must hold for the pattern to match. Searching for it is faster."""
    pattern: str


class KnownValues:
    """Secret values, and a text without them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._learned: set[str] = set()
        self._environment: dict[bytes, bytes] | None = None
        self._forms: list[_Form] = []
        # How many learned values the forms cover.
        self._covered = 0

    def add(self, values: Iterable[str]) -> None:
        for value in values:
            self._learned |= _pieces(value)

    def remove_from(self, text: str) -> str:
        self._update()
        patterns = [form.pattern for form in self._forms if form.probe in text]
        if "\n" in text:
            joined = _LINE_BREAK.sub("", text)
            for form in self._forms:
                is_broken = form.probe not in text and form.probe in joined
                if is_broken and len(form.probe) >= SHORTEST_INSIDE:
                    patterns.append(_over_lines(form.probe))
        return re.sub("|".join(patterns), REDACTED, text) if patterns else text

    def _update(self) -> None:
        """Compares the environment, which may change: a user's module may load a .env at any time."""
        # The dictionary behind os.environ, in bytes: a copy through os.environ decodes each entry.
        now: dict[bytes, bytes] = getattr(os.environ, "_data", {})
        if now == self._environment and len(self._learned) == self._covered:
            return
        if self._environment is None:
            self.add(_kept_by_tools())
        self._environment = dict(now)
        self._covered = len(self._learned)
        values = set(self._learned)
        for value in of_environment(os.environ.items()):
            values |= _pieces(value)
        forms = {form.pattern: form for value in values for form in _forms_of(value)}
        # The longest first: a part of a secret must not leave the rest of it.
        self._forms = sorted(forms.values(), key=lambda form: len(form.probe), reverse=True)


def of_environment(variables: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The secrets in environment variables: those with such a name, and the passwords in URLs."""
    for name, value in variables:
        rank = grade(name)
        is_secret = rank in (Grade.SURE, Grade.NUMBERED)
        if rank is Grade.MAYBE:
            is_secret = looks_secret(value)
        # GOOGLE_APPLICATION_CREDENTIALS
        is_file = value.startswith("/") and Path(value).exists()
        if is_secret and not is_file:
            yield value
        yield from PASSWORDS.findall(value)


def _pieces(value: str) -> set[str]:
    """A value as it is searched for; of one with several lines, each long line too."""
    value = value.strip()
    pieces = {value}
    lines = value.splitlines()
    if len(lines) > 1:
        for line in map(str.strip, lines):
            # ----- begins the first and the last line of a key.
            if len(line) >= 16 and not line.startswith("-----"):
                pieces.add(line)
    return {piece for piece in pieces if _is_searched_for(piece)}


def _is_searched_for(value: str) -> bool:
    if len(value) < SHORTEST or is_harmless(value) or value.lower() in ORDINARY:
        return False
    # Short numbers are in every row of metrics.
    return not (value.isdecimal() and len(value) < 6)


@lru_cache(maxsize=1_000)
def _forms_of(value: str) -> tuple[_Form, ...]:
    """In a URL, in JSON, in Python, in HTML, in a shell, in base64 and in hexadecimal."""
    texts = {
        value,
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
        html.escape(value),
        value.replace("'", "'\"'\"'"),  # a shell's '...'
        value.replace("'", "''"),  # YAML's and SQL's '...'
        value.replace("$", "$$"),  # make, Docker Compose
    }
    # Each of these inside a JSON text, such as a notebook.
    texts |= {json.dumps(text)[1:-1] for text in tuple(texts)}
    if len(value) < SHORTEST_INSIDE:
        words = [rf"(?<![A-Za-z0-9_]){re.escape(text)}(?![A-Za-z0-9_])" for text in texts]
        return tuple(_Form(text, word) for text, word in zip(texts, words, strict=True))
    texts |= _encoded(value.encode())
    forms = [_Form(text, re.escape(text)) for text in texts]
    pieces = value.split()
    if len(pieces) > 1:
        # Wrapped at its spaces, in a patch or a comment.
        gap = r"(?:\\n|\s)+(?:[+\- ]\s*)?"
        forms.append(_Form(max(pieces, key=len), gap.join(map(re.escape, pieces))))
    if len(value) >= 12 and "://" not in value[:12]:
        # As reprlib shortens it: the first letters, dots, the last ones.
        begin = value[:8]
        rest = r"[^\s'\"]{0,200}?(?:\.\.\.|…)[^\s'\"]{0,60}"
        forms.append(_Form(begin, re.escape(begin) + rest))
    return tuple(forms)


def _encoded(value: bytes) -> set[str]:
    """In hexadecimal, and in base64 as part of a longer text.

    base64 turns 3 bytes into 4 letters, so there are three forms: the value may begin at any of 3
    bytes. The letters that depend on its neighbours are cut off.
    """
    texts = {value.hex(), value.hex().upper()}
    for num_before, start in ((0, 0), (1, 2), (2, 3)):
        letters = base64.b64encode(b"\0" * num_before + value).decode().rstrip("=")
        is_cut = (num_before + len(value)) % 3 != 0
        inner = letters[start : len(letters) - is_cut]
        if len(inner) >= SHORTEST_INSIDE:
            texts |= {inner, inner.replace("+", "-").replace("/", "_")}
    return texts


# A line end with what may stand around it: a backslash, the mark of a patch, an indent, the mark of
# a comment, a quote.
_BREAK = r"\\?\n[+\- ]?[ \t]*(?:#[ \t]*|[\"'])?"
_LINE_BREAK = re.compile(_BREAK)


def _over_lines(value: str) -> str:
    """A value that something has broken into lines."""
    return f"(?:{_BREAK})?".join(map(re.escape, value))


# Files of well-known tools


def _kept_by_tools() -> Iterator[str]:
    """What Hugging Face, W&B, git and AWS keep in the home folder, or where they are told to."""
    home = Path("~").expanduser()
    environment = os.environ
    hub = Path(environment.get("HF_HOME", home / ".cache" / "huggingface"))
    yield from _text(Path(environment.get("HF_TOKEN_PATH", hub / "token"))).split()
    netrc = [home / ".netrc", home / "_netrc"]
    if environment.get("NETRC"):
        netrc = [Path(environment["NETRC"])]
    for file in netrc:
        yield from re.findall(r"\bpassword\s+(\S+)", _text(file))
    wandb = Path(environment.get("WANDB_CONFIG_DIR", home / ".config" / "wandb"))
    with_names = (
        hub / "stored_tokens",
        wandb / "settings",
        Path("wandb/settings"),
        home / ".aws" / "credentials",
    )
    for file in with_names:
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
