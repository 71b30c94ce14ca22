"""The one function through which passes all that leaves the process, and the secrets it knows."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from train.redaction.known_values import KnownValues
from train.redaction.names import Grade, grade, is_secret_name
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

_KNOWN = KnownValues()
_REFERENCE = re.compile(r"\$\{[\w.:\[\]]+\}")
"""${oc.env:HF_TOKEN} names a secret without holding it; one with a default may hold it."""
_OPTION = re.compile(r"--?[A-Za-z][\w.-]*")
"""--password, -p"""
_PARAMETER = re.compile(r"[?&]([\w.~-]{1,100})=([^&\s#]+)")
"""?sig=X in a URL."""


def clean(value: Any) -> Any:
    """A copy of the mappings, lists and texts in `value`, without secrets.

    Other things are returned as they are.
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
    """`code`: Python, where `token = next(tokens)` stays: what has no quotes is an expression."""
    text = redact_shapes(_KNOWN.remove_from(text))
    parts: list[str] = []
    end = 0
    for span in secret_spans(text, code):
        if span.start >= end:
            parts += [text[end : span.start], REDACTED]
            end = span.end
    return "".join([*parts, text[end:]])


def clean_known(value: Any) -> Any:
    """Without the values that are known to be secret; names and looks do not count.

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
    """Remember the secrets in a config or a command line, which may turn up in any later text."""
    _KNOWN.add(secrets_in(value))


def forget() -> None:
    """As in a new process."""
    _KNOWN.clear()


def secrets_in(value: Any) -> Iterator[str]:
    """The texts under secret names in a nested value, and those inside of its texts."""
    yield from _secrets_in(value, Grade.NO)


def _secrets_in(value: Any, above: Grade) -> Iterator[str]:
    """`above`: the grade of the name that the value stands under."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            below = above
            if above in (Grade.NO, Grade.MAYBE):
                below = grade(_name_of(key, value))
            yield from _secrets_in(item, below)
    elif isinstance(value, list | tuple):
        for before, item in zip((None, *value), value, strict=False):
            yield from _secrets_in(item, Grade.SURE if _is_argument_of(before, item) else above)
    elif isinstance(value, int) and not isinstance(value, bool) and above is Grade.SURE:
        yield str(value)
    elif isinstance(value, str):
        if _is_secret_text(above, value):
            yield value
        yield from _secrets_in_text(value)


def _name_of(key: Any, mapping: Mapping[Any, Any]) -> str:
    """The name of an item; that of a value may stand beside it: {"name": "HF_TOKEN", "value": X}."""
    beside = mapping.get("name", mapping.get("key"))
    if isinstance(beside, str) and str(key) in ("value", "default"):
        return beside
    return str(key)


def _is_secret_text(rank: Grade, value: str) -> bool:
    """Whether a text under a name of this grade is to be remembered."""
    if rank is Grade.NO or _REFERENCE.fullmatch(value):
        return False
    return rank is not Grade.MAYBE or looks_secret(value)


def _secrets_in_text(text: str) -> Iterator[str]:
    """`name=value` in an override or a note, and what a URL holds."""
    values = [text[span.start : span.end].strip("\"'") for span in secret_spans(text)]
    for name, value in _PARAMETER.findall(text):
        if is_secret_parameter(name):
            values.append(value)
    # A note is prose: its ordinary words are no secrets.
    yield from (value for value in values if len(value) >= 8 or not value.isalpha())
    yield from PASSWORDS.findall(text)


def _clean_mapping(value: Mapping[Any, Any]) -> dict[Any, Any]:
    cleaned: dict[Any, Any] = {}
    for key, item in value.items():
        shown = clean_text(key) if isinstance(key, str) else key
        is_secret = _holds_secret(_name_of(key, value), item)
        cleaned[shown] = REDACTED if is_secret else clean(item)
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
    # tokens: [1, 2, 3]
    if rank is Grade.NUMBERED and isinstance(value, list | tuple):
        return not all(isinstance(item, int | float) for item in value)
    return rank is not Grade.MAYBE


def _is_argument_of(option: Any, value: Any) -> bool:
    """Whether two neighbours in a command line are `--password` and its value."""
    if not (isinstance(option, str) and isinstance(value, str)) or value.startswith("-"):
        return False
    return _OPTION.fullmatch(option) is not None and is_secret_name(option)
