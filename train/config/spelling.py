"""What YAML reads otherwise than it is written: 1:30 is 90, 010 is 8, a name 1.10 is 1.1, and `on`
is true. Pure.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_origin

import yaml

from train.config.keys import Path, owner, types_of

PLAIN = re.compile(
    r"[-+]?(0|[1-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", re.IGNORECASE
)
"""What everybody reads in the same way: decimal, no zero in front, no colon."""

POWER = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+")
"""Such as 1e3: a number for OmegaConf, text for PyYAML."""


@dataclass(frozen=True)
class Misspelt:
    line: int  # from 1
    path: Path
    text: str
    value: int | float
    takes_text: bool
    takes_numbers: bool

    @property
    def instead(self) -> str:
        """What to write in its place."""
        if self.path == ("name",):  # of a folder
            return (
                re.sub(r"[^A-Za-z0-9.-]", "-", self.text) if ":" in self.text else f'"{self.text}"'
            )
        return f'"{self.text}"' if self.takes_text else repr(self.value)

    @property
    def sentence(self) -> str:
        why = ""
        if not isinstance(self.value, bool) and PLAIN.fullmatch(self.text) is None:
            why = (
                " (base 60)"
                if ":" in self.text
                else " (a number that begins with 0 is not decimal)"
            )
        kind = (
            str(self.value).lower()
            if isinstance(self.value, bool)
            else f"the number {self.value!r}"
        )
        got = f"got {self.text}, which YAML reads as {kind}{why}"
        if self.takes_text and self.takes_numbers:
            return f"{got}. For the number, write {self.value!r}; for the text, {self.instead}"
        return f"{got}. Write {self.instead}"


def misspelt(text: str, loader: Any, path: Path = ()) -> Iterator[Misspelt]:
    """Of a document, or of the value of the key `path`. Raises YAMLError."""
    node = yaml.compose(text, Loader=loader)
    seen: set[int] = set()
    if node is not None:
        yield from _walk(node, path, seen)


def _walk(node: yaml.Node, path: Path, seen: set[int]) -> Iterator[Misspelt]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _walk(key, path, seen)
            yield from _walk(value, (*path, str(key.value)), seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, path, seen)
    elif isinstance(node, yaml.ScalarNode) and not node.style:
        yield from _of_scalar(node, path)


def _of_scalar(node: yaml.ScalarNode, path: Path) -> Iterator[Misspelt]:
    text = node.value
    is_power = POWER.fullmatch(text) is not None
    is_number = is_power or node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    is_truth = node.tag == "tag:yaml.org,2002:bool"
    if not is_number and not is_truth:
        return
    value = float(text.replace("_", "")) if is_power else yaml.safe_load(text)
    key = owner(path)
    types = {Any} if key is None else set(types_of(key))
    is_open = bool(types & {Any, dict[str, Any]}) or dict in map(get_origin, types)
    takes_text = is_open or bool(types & {str, list[str]})
    takes_numbers = is_open or bool(types & {int, float, list[int]})
    if is_truth:
        takes_numbers = is_open or bool in types
    loses = takes_text and not takes_numbers and str(value) != text
    if loses or (is_number and PLAIN.fullmatch(text) is None):
        yield Misspelt(
            line=node.start_mark.line + 1,
            path=path,
            text=text,
            value=value,
            takes_text=takes_text,
            takes_numbers=takes_numbers,
        )
