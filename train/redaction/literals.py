"""How a value is written in a text: in quotes, in brackets, on the lines below its name."""

import re
from dataclasses import dataclass

from train.redaction.shapes import REDACTED, looks_secret

LONGEST_VALUE = 5_000
MOST_LINES = 10
"""Of a text between single quote marks; what is not closed by then ends with its line."""

OPENING = re.compile(
    r"[rbfuRBFU]{0,2}"  # the prefix of a text in Python
    r"(?P<quote>\\{0,3}(?:\"\"\"|'''|[\"'`]))"  # escaped where a text holds the code of another
)
NEXT_LITERAL = re.compile(
    r"[ \t]*\\?\n?[+\- ]?[ \t]*"  # on the same line or the next one, which a patch marks
    r"(?:\+[ \t]*)?"  # joined by a plus
    r"(?=[rbfuRBFU]{0,2}\\{0,3}[\"'])"
)
"""What stands between two texts that are joined."""
_BRACKETS = re.compile(r"[()\[\]{}]")
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Span:
    start: int
    end: int


def is_redacted(value: str) -> bool:
    """Whether a value has been redacted already."""
    if not value.startswith(REDACTED):
        return False
    following = value[len(REDACTED) :][:1]
    return following in ("", *"& ,;)}]\"'@\n\\")


def end_of_quoted(text: str, opening: re.Match[str]) -> int:
    """Where a quoted text ends: before its closing quote, else with the line."""
    quote = opening["quote"]
    start = opening.end()
    limit = min(len(text), start + LONGEST_VALUE)
    is_escaped_quote = quote.startswith("\\")
    end = text.find(quote, start, limit)
    while end > 0 and not is_escaped_quote and _is_escaped(text, start, end):
        end = text.find(quote, end + 1, limit)
    line_end = text.find("\n", start, limit)
    if line_end < 0:
        line_end = limit
    is_single = len(quote.lstrip("\\")) == 1
    if end < 0 or (is_single and text.count("\n", start, end) > MOST_LINES):
        return line_end
    return end


def _is_escaped(text: str, start: int, position: int) -> bool:
    """Whether an odd number of backslashes stands before a position."""
    before = text[max(start, position - 20) : position]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def end_of_bracket(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`; where none does, the end of the line."""
    stack: list[str] = []
    for match in _BRACKETS.finditer(text, start, min(len(text), start + LONGEST_VALUE)):
        if match[0] in _PAIRS:
            stack.append(_PAIRS[match[0]])
        elif stack and match[0] == stack[-1]:
            stack.pop()
            if not stack:
                return match.end()
    line_end = text.find("\n", start)
    return len(text) if line_end < 0 else line_end


def indented_lines(text: str, start: int, value_start: int) -> list[Span]:
    """The lines below the YAML key at `start` that belong to it: a folded text, list or mapping."""
    line_start = text.rfind("\n", 0, start) + 1
    head = text[line_start:start]
    if not re.fullmatch(r"[+\- ]?[ \t]*(?:-[ \t]+)?[\"']?", head):
        return []
    # In a patch, a line begins with its mark.
    is_patch = head[:1] in ("+", "-") and not head.startswith("- ")
    indent = _indent(head, is_patch)
    spans: list[Span] = []
    line = text.find("\n", value_start) + 1
    while 0 < line < len(text) and line - value_start < LONGEST_VALUE:
        end = text.find("\n", line)
        if end < 0:
            end = len(text)
        content = text[line:end]
        body = content[is_patch:]
        stripped = body.strip()
        # A list may stand as far left as its key.
        is_item = stripped.startswith("- ") and _indent(content, is_patch) == indent
        if stripped and _indent(content, is_patch) <= indent and not is_item:
            break
        if stripped:
            spans.append(Span(end - len(body.lstrip().removeprefix("- ")), end))
        line = end + 1
    return spans


def _indent(line: str, is_patch: bool) -> int:
    body = line[1:] if is_patch else line
    return len(body) - len(body.lstrip(" \t"))


def padded(value: str, be: str | None) -> str:
    """A value as looks_secret is to judge it: after `the password is`, a short one counts too."""
    return value if not be or len(value) < 6 else value.ljust(8, "_")


def secret_literals(line: str, start: int) -> list[Span]:
    """The texts in quotes in a line of code that look secret; `start`: of the line."""
    literals = re.compile(r"\\?([\"'])(.*?)\\?\1").finditer(line)
    return [
        Span(start + match.start(2), start + match.end(2))
        for match in literals
        if looks_secret(match[2]) and not match[2].isupper()
    ]


def in_comment(text: str, position: int) -> bool:
    line_start = text.rfind("\n", 0, position) + 1
    return re.search(r"(?:^[+\- ]?|\s)#", text[line_start:position]) is not None


def is_key(text: str, opening: re.Match[str]) -> bool:
    """Whether what stands in these quotes is the next key, not a part of the value before it."""
    end = end_of_quoted(text, opening) + len(opening["quote"])
    return text[end : end + 1] in (":", "=")
