"""Kinds of JSON values, in words, and a value of another kind than the others of its column."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# By exact type: for isinstance, True is a number.
KINDS = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class OddKind:
    """The first value of a column that is of another kind than most."""

    index: int
    kind: str
    usual: str
    usual_count: int
    others: int  # that are of another kind too

    def sentences(self, location: str, value: str) -> str:
        more = f", and {self.others} more are not" if self.others else ""
        return (
            f"{location} has {self.kind}, {value}, where {self.usual_count} others have "
            f"{self.usual}{more}. Write all of them as {self.usual}"
        )


def find_odd_kind(kinds: Sequence[str | None]) -> OddKind | None:
    """None: all values are of one kind; entries that are None do not count."""
    counts = Counter(kind for kind in kinds if kind is not None)
    # int and float are one kind here: a column may hold both.
    if len(counts) < 2:
        return None
    usual, usual_count = counts.most_common(1)[0]
    for index, kind in enumerate(kinds):
        if kind is not None and kind != usual:
            others = counts.total() - usual_count - 1
            return OddKind(
                index=index, kind=kind, usual=usual, usual_count=usual_count, others=others
            )
    return None
