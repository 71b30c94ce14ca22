"""The text of a YAML file, checked for what would end the process when it is loaded.

A document that is nested too deep crashes the parser, and aliases can grow without bound.
"""

from pathlib import Path

import yaml

from train.disk import DEEPEST, Unreadable, read_bytes

MOST_NODES = 1_000_000
PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def yaml_text(path: Path) -> str:
    """Raises Unreadable, FileNotFoundError, UnicodeError, and YAMLError where it is no YAML."""
    # A shell passes `<(command)` as a pipe. One that lies in a folder is refused by read_bytes: it
    # would be waited for, for ever.
    if str(path).startswith(PIPES):
        text = path.read_text(encoding="utf-8")
    else:
        text = read_bytes(path).decode()
    _check(path, text)
    return text


def _check(path: Path, text: str) -> None:
    """Raises Unreadable for a document that is too deep or, its aliases expanded, too large.

    Event by event: libyaml calls itself for each level of a document, without a limit (it crashes
    at 100,000).
    """
    size_of_anchor: dict[str, int] = {}
    # (anchor, nodes so far) of each collection that is open, the document first.
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=Loader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            # An alias counts as all that it stands for.
            size = size_of_anchor.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            if anchor:
                size_of_anchor[anchor] = size
        above, so_far = open_nodes[-1]
        open_nodes[-1] = (above, so_far + size)
        if len(open_nodes) > DEEPEST:
            raise Unreadable(f"{path} is nested deeper than {DEEPEST} levels")
        # So an alias of aliases is found before it is expanded, which would fill the memory.
        if so_far + size > MOST_NODES:
            raise Unreadable(f"{path} grows to more than {MOST_NODES:,} values by its aliases")
