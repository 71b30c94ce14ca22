"""The one function through which everything passes that leaves the process, and what it knows of
the process.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from train.redaction.known import Known
from train.redaction.names import Grade, grade
from train.redaction.pairs import secret_spans
from train.redaction.shapes import (
    PASSWORDS,
    REDACTED,
    is_harmless,
    is_secret_parameter,
    looks_secret,
    redact_shapes,
)

T = TypeVar("T")

_KNOWN = Known()
_REFERENCE = re.compile(r"\$\{[\w.:\[\]]+\}")
"""${oc.env:HF_TOKEN} names a secret without saying it; one with a default may say it."""
_OPTION = re.compile(r"--?[A-Za-z][\w.-]*")
_PARAMETER = re.compile(r"[?&]([\w.~-]{1,100})=([^&\s#]+)")


def clean(value: Any) -> Any:
    """`value` without secrets: a copy of its mappings, lists and texts; other things are returned
    as they are.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return _clean_mapping(value)
    if isinstance(value, list | tuple):
        pairs = zip((None, *value), value, strict=False)
        return [
            REDACTED if _is_argument_of(before, item) else clean(item) for before, item in pairs
        ]
    return value


def clean_text(text: str, code: bool = False) -> str:
    """`code`: in Python, where what has no quotes is an expression: `token =
    next(tokens)` stays.
    """
    text = redact_shapes(_KNOWN.remove_from(text))
    parts: list[str] = []
    place = 0
    for span in secret_spans(text, code):
        if span.start >= place:
            parts += [text[place : span.start], REDACTED]
            place = span.end
    return "".join([*parts, text[place:]]) if parts else text


def clean_known(value: Any) -> Any:
    """Without the values that are known to be secret; nothing is judged by its name or its looks.

    For files that are read again.
    """
    if isinstance(value, str):
        return _KNOWN.remove_from(value)
    if isinstance(value, Mapping):
        return {key: clean_known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(clean_known(item) for item in value)
    return value


def learn(value: Any) -> None:
    """Remember the secrets in a config, or in a command line: they may turn up again in a name, an
    error, a trace.
    """
    _KNOWN.add(secrets_in(value))


def forget() -> None:
    """As in a new process."""
    _KNOWN.clear()


def secrets_in(value: Any) -> Iterator[str]:
    """The texts under secret names in a nested value, and those inside of its texts."""
    yield from _secrets_in(value, Grade.NO)


def _secrets_in(value: Any, rank: Grade) -> Iterator[str]:
    if isinstance(value, Mapping):
        named = value.get("name", value.get("key"))
        for key, item in value.items():
            own = (
                grade(named)
                if isinstance(named, str) and key in ("value", "default")
                else grade(str(key))
            )
            yield from _secrets_in(item, own if rank in (Grade.NO, Grade.MAYBE) else rank)
    elif isinstance(value, list | tuple):
        for before, item in zip((None, *value), value, strict=False):
            yield from _secrets_in(item, Grade.SURE if _is_argument_of(before, item) else rank)
    elif isinstance(value, int) and not isinstance(value, bool) and rank is Grade.SURE:
        yield str(value)
    elif isinstance(value, str):
        named = rank in (Grade.SURE, Grade.NUMBERED) or (
            rank is Grade.MAYBE and looks_secret(value)
        )
        if named and not _REFERENCE.fullmatch(value):
            yield value
        yield from _secrets_in_text(value)


def _secrets_in_text(text: str) -> Iterator[str]:
    """`name=value` in an override or a note, and what a URL holds. Ordinary words are none: a note
    is prose.
    """
    found = [text[span.start : span.end].strip("\"'") for span in secret_spans(text)]
    found += [value for name, value in _PARAMETER.findall(text) if is_secret_parameter(name)]
    yield from (value for value in found if len(value) >= 8 or not value.isalpha())
    yield from PASSWORDS.findall(text)


def _clean_mapping(value: Mapping[Any, Any]) -> dict[Any, Any]:
    named = value.get("name", value.get("key"))
    cleaned: dict[Any, Any] = {}
    for key, item in value.items():
        name = str(key)
        if isinstance(named, str) and name in ("value", "default"):
            name = named  # {"name": "HF_TOKEN", "value": "..."}
        shown = clean_text(key) if isinstance(key, str) else key
        cleaned[shown] = REDACTED if _holds_secret(name, item) else clean(item)
    return cleaned


def _holds_secret(name: str, value: Any) -> bool:
    rank = grade(name)
    if rank is Grade.NO or value is None or isinstance(value, bool) or value in ("", {}, []):
        return False
    if isinstance(value, str):
        if is_harmless(value) or _REFERENCE.fullmatch(value):
            return False
        return rank is not Grade.MAYBE or looks_secret(value)
    if isinstance(value, int | float):
        return rank is Grade.SURE or (rank is Grade.NUMBERED and abs(value) >= 100_000)
    if rank is Grade.NUMBERED and isinstance(value, list | tuple):
        return not all(isinstance(item, int | float) for item in value)
    return rank is not Grade.MAYBE


def _is_argument_of(option: Any, value: Any) -> bool:
    """Whether two neighbours in a command line are `--password` and its value."""
    if not (isinstance(option, str) and isinstance(value, str)) or value.startswith("-"):
        return False
    return _OPTION.fullmatch(option) is not None and grade(option) in (Grade.SURE, Grade.NUMBERED)
