"""How a value is written in a text: in quotes, in brackets, on the lines below its name."""

import re
from dataclasses import dataclass

from train.redaction.shapes import REDACTED, looks_secret

LONGEST_VALUE = 5_000
MOST_LINES = 10
"""Of a text in single quotes; what is not closed by then ends with its line."""

OPENING = re.compile(r"[rbfuRBFU]{0,2}(?P<quote>\\{0,3}(?:\"\"\"|'''|[\"'`]))")
NEXT_LITERAL = re.compile(r"[ \t]*\\?\n?[+\- ]?[ \t]*(?:\+[ \t]*)?(?=[rbfuRBFU]{0,2}\\{0,3}[\"'])")
_BRACKETS = re.compile(r"[()\[\]{}]")
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Span:
    start: int
    end: int


def is_hidden(value: str) -> bool:
    """Whether a value has been taken out already."""
    return value.startswith(REDACTED) and value[len(REDACTED) :][:1] in ("", *"& ,;)}]\"'@\n\\")


def end_of_quoted(text: str, opening: re.Match[str]) -> int:
    """Where a quoted text ends: before its closing quote, else with the line."""
    quote, place = opening["quote"], opening.end()
    limit = min(len(text), place + LONGEST_VALUE)
    escaped = quote.startswith("\\")
    end = text.find(quote, place, limit)
    while end > 0 and not escaped and _is_escaped(text, place, end):
        end = text.find(quote, end + 1, limit)
    line_end = text.find("\n", place, limit)
    line_end = limit if line_end < 0 else line_end
    single = len(quote.lstrip("\\")) == 1
    if end < 0 or (single and text.count("\n", place, end) > MOST_LINES):
        return line_end
    return end


def _is_escaped(text: str, place: int, end: int) -> bool:
    before = text[max(place, end - 20) : end]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def end_of_bracket(text: str, place: int) -> int:
    """Behind the bracket that closes the one at `place`; where none does, the end of the line."""
    stack: list[str] = []
    for match in _BRACKETS.finditer(text, place, min(len(text), place + LONGEST_VALUE)):
        if match[0] in _PAIRS:
            stack.append(_PAIRS[match[0]])
        elif stack and match[0] == stack[-1]:
            stack.pop()
            if not stack:
                return match.end()
    line_end = text.find("\n", place)
    return len(text) if line_end < 0 else line_end


def indented_lines(text: str, start: int, place: int) -> list[Span]:
    """The lines below the YAML key at `start` that belong to it: a folded text, a list,
    a mapping.
    """
    begin = text.rfind("\n", 0, start) + 1
    head = text[begin:start]
    if not re.fullmatch(r"[+\- ]?[ \t]*(?:-[ \t]+)?[\"']?", head):
        return []
    # In a patch, a line begins with its marker.
    marked = head[:1] in ("+", "-") and not head.startswith("- ")
    indent = _indent(head, marked)
    found: list[Span] = []
    line = text.find("\n", place) + 1
    while 0 < line < len(text) and line - place < LONGEST_VALUE:
        end = text.find("\n", line)
        end = len(text) if end < 0 else end
        content = text[line:end]
        own = _indent(content, marked)
        body = content[marked:].strip()
        if body and own <= indent and not (body.startswith("- ") and own == indent):
            break
        if body:
            found.append(Span(end - len(content[marked:].lstrip().removeprefix("- ")), end))
        line = end + 1
    return found


def _indent(line: str, marked: bool) -> int:
    body = line[1:] if marked else line
    return len(body) - len(body.lstrip(" \t"))


def padded(value: str, be: str | None) -> str:
    """`the password is hunter2` says a short one too."""
    return value if not be or len(value) < 6 else value.ljust(8, "_")


def made_up(line: str, place: int) -> list[Span]:
    """The texts in quotes in a line of code that look as if nobody had thought of them as words."""
    literals = re.compile(r"\\?([\"'])(.*?)\\?\1").finditer(line)
    found = [match for match in literals if looks_secret(match[2]) and not match[2].isupper()]
    return [Span(place + match.start(2), place + match.end(2)) for match in found]


def in_comment(text: str, place: int) -> bool:
    begin = text.rfind("\n", 0, place) + 1
    return re.search(r"(?:^[+\- ]?|\s)#", text[begin:place]) is not None


def is_key(text: str, opening: re.Match[str]) -> bool:
    """Whether what stands in these quotes is the next key, not a part of the value before it."""
    end = end_of_quoted(text, opening) + len(opening["quote"])
    return text[end : end + 1] in (":", "=")
