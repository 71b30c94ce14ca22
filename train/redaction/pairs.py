"""Where in a text a secret stands after its name: `name = value`, in many languages.

One pass from left to right: a patch has many thousand words, and few of them are looked at twice.
"""

from collections.abc import Iterator

from train.redaction import grammar
from train.redaction.candidate import Candidate
from train.redaction.literals import Span
from train.redaction.names import Grade, grade


def secret_spans(text: str, code: bool = False) -> Iterator[Span]:
    """Yields where secrets stand behind their names, in order.

    `code`: Python, where what has no quotes is an expression.
    """
    position = 0
    while stem := grammar.STEM.search(text, position):
        rest = grammar.REST.match(text, stem.end())
        position = rest.end() if rest else stem.end()
        start = _start_of_name(text, stem.start())
        name = text[start:position].rstrip(".-")
        name_grade = grade(name)
        if name_grade is Grade.NO:
            continue
        candidate = Candidate(
            text=text, start=start, end=start + len(name), grade=name_grade, code=code
        )
        for span in candidate.spans():
            yield span
            position = max(position, span.end)


def _start_of_name(text: str, stem_start: int) -> int:
    """Where the name begins that a stem is part of: matched backwards, as REST is forwards."""
    before = text[max(0, stem_start - grammar.LONGEST_NAME) : stem_start]
    letters = grammar.REST.match(before[::-1])
    return stem_start - (letters.end() if letters else 0)
