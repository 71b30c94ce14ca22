"""Values that YAML reads otherwise than they are written. Pure.

1:30 is 90, 010 is 8, a name 1.10 is 1.1, and `on` is true.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_origin

import yaml

from train.config.keys import KeyPath, owner, types_of

PLAIN = re.compile(
    r"[-+]?(0|[1-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", re.IGNORECASE
)
"""Numbers that everybody reads in the same way: decimal, no zero in front, no colon."""

POWER = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+")
"""Such as 1e3: a number for OmegaConf, text for PyYAML."""


@dataclass(frozen=True, kw_only=True)
class Misspelt:
    line: int
    """Of the document, from 1."""
    path: KeyPath
    text: str
    """As it is written."""
    value: int | float
    """As YAML reads it."""
    takes_text: bool
    takes_numbers: bool

    @property
    def replacement(self) -> str:
        """What to write in place of it."""
        # The name of a run is that of a folder, which should hold no colon.
        if self.path == ("name",) and ":" in self.text:
            return re.sub(r"[^A-Za-z0-9.-]", "-", self.text)
        if self.path == ("name",) or self.takes_text:
            return f'"{self.text}"'
        return repr(self.value)

    @property
    def sentence(self) -> str:
        got = f"got {self.text}, which YAML reads as {self._read_as()}"
        if self.takes_text and self.takes_numbers:
            return f"{got}. For the number, write {self.value!r}; for the text, {self.replacement}"
        return f"{got}. Write {self.replacement}"

    def _read_as(self) -> str:
        if isinstance(self.value, bool):
            return str(self.value).lower()
        number = f"the number {self.value!r}"
        if PLAIN.fullmatch(self.text):
            return number
        if ":" in self.text:
            return f"{number} (base 60)"
        return f"{number} (a number that begins with 0 is not decimal)"


def misspelt(text: str, loader: Any, path: KeyPath = ()) -> Iterator[Misspelt]:
    """Of a document, or of the value of the key `path`. Raises YAMLError."""
    # Nodes, since values no longer hold what was written.
    node = yaml.compose(text, Loader=loader)
    seen: set[int] = set()
    if node is not None:
        yield from _walk(node, path, seen)


def _walk(node: yaml.Node, path: KeyPath, seen: set[int]) -> Iterator[Misspelt]:
    # An alias is the node that it names: walked once, it cannot grow without bound.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            # Keys, too: YAML reads the key 010 as 8.
            yield from _walk(key, path, seen)
            yield from _walk(value, (*path, str(key.value)), seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, path, seen)
    # What is quoted is meant as it is written.
    elif isinstance(node, yaml.ScalarNode) and not node.style:
        yield from _of_scalar(node, path)


def _of_scalar(node: yaml.ScalarNode, path: KeyPath) -> Iterator[Misspelt]:
    text = node.value
    is_power = POWER.fullmatch(text) is not None
    is_number = is_power or node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    is_truth = node.tag == "tag:yaml.org,2002:bool"
    if not is_number and not is_truth:
        return
    value = float(text.replace("_", "")) if is_power else yaml.safe_load(text)
    key = owner(path)
    types = {Any} if key is None else set(types_of(key))
    # Below `args`, and for unknown keys, any type may be meant.
    is_open = not types.isdisjoint({Any, dict[str, Any]}) or dict in map(get_origin, types)
    takes_text = is_open or not types.isdisjoint({str, list[str]})
    # Of a truth value the question is whether the key takes those.
    if is_truth:
        takes_numbers = is_open or bool in types
    else:
        takes_numbers = is_open or not types.isdisjoint({int, float, list[int]})
    # A name 12 becomes the text 12 in any case; a name 1.10 would become 1.1.
    changes_text = takes_text and not takes_numbers and str(value) != text
    is_read_otherwise = is_number and PLAIN.fullmatch(text) is None
    if changes_text or is_read_otherwise:
        yield Misspelt(
            line=node.start_mark.line + 1,
            path=path,
            text=text,
            value=value,
            takes_text=takes_text,
            takes_numbers=takes_numbers,
        )
