"""The text of a YAML file that a loader can take: a deep one ends the process, and aliases grow
without bound.
"""

from pathlib import Path

import yaml

from train.disk import DEEPEST, Unreadable, read_bytes

MOST_NODES = 1_000_000
PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def yaml_text(path: Path) -> str:
    """Raises Unreadable, FileNotFoundError, UnicodeError, and YAMLError where it is no YAML.

    A shell hands over `<(command)` as a pipe; in a folder one would be waited for, for ever.
    """
    text = (
        path.read_text(encoding="utf-8")
        if str(path).startswith(PIPES)
        else read_bytes(path).decode()
    )
    _check(path, text)
    return text


def _check(path: Path, text: str) -> None:
    """Event by event: libyaml calls itself for each level of a document, without a limit (it
    crashes at 100,000).
    """
    nodes_of: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=Loader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            size = nodes_of.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            if anchor:
                nodes_of[anchor] = size
        above, so_far = open_nodes[-1]
        open_nodes[-1] = (above, so_far + size)
        if len(open_nodes) > DEEPEST:
            raise Unreadable(f"{path} is nested deeper than {DEEPEST} levels")
        if so_far + size > MOST_NODES:
            raise Unreadable(f"{path} grows to more than {MOST_NODES:,} values by its aliases")
