"""Where in a text a secret stands after its name: `name = value`, in whatever language the text is
written.

Found are places, in one pass from left to right: a patch has many thousand words, and few of them
are looked at twice.
"""

from collections.abc import Iterator

from train.redaction import grammar
from train.redaction.candidate import Candidate
from train.redaction.names import Grade, grade
from train.redaction.written import (
    Span,
)


def secret_spans(text: str, code: bool = False) -> list[Span]:
    """Where secrets stand behind their names, in order. `code`: Python, where what has no quotes is
    an expression.
    """
    return list(_spans(text, code))


def _spans(text: str, code: bool) -> Iterator[Span]:
    place = 0
    while stem := grammar.STEM.search(text, place):
        rest = grammar.REST.match(text, stem.end())
        place = rest.end() if rest else stem.end()
        before = text[max(0, stem.start() - grammar.LONGEST_NAME) : stem.start()][::-1]
        word = grammar.REST.match(before)
        start = stem.start() - (word.end() if word else 0)
        name = text[start:place]
        kept = name.rstrip(".-")
        rank = grade(kept)
        if rank is Grade.NO:
            continue
        for span in Candidate(text, start, start + len(kept), rank, code).spans():
            yield span
            place = max(place, span.end)
