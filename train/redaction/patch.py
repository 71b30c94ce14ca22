"""git.patch: what `git diff` says, without its secrets. A line that held one no longer applies."""

import re
from collections.abc import Callable

from train.redaction.clean import clean_text

_CODE = (".py", ".pyi")
# The parts of a patch, one a file; the content of a binary file; the name of a file.
_FILE = re.compile(r"^(?=diff --git )", re.MULTILINE)
_BINARY = re.compile(r"^GIT binary patch\n[\s\S]*", re.MULTILINE)
_NAMED = re.compile(r"^\+\+\+ b/(.*)$|^diff --git .* b/(.*)$", re.MULTILINE)


def clean_patch(patch: str, read: Callable[[str], bytes]) -> str:
    """`read(path)` returns the bytes of a file in the working tree; none if there is no such file."""
    return "".join(_clean_part(part, read) for part in _FILE.split(patch))


def _clean_part(part: str, read: Callable[[str], bytes]) -> str:
    named = _NAMED.search(part)
    path = (named[1] or named[2]).rstrip("\t") if named else ""
    binary = _BINARY.search(part)
    if binary is None:
        return clean_text(part, code=path.endswith(_CODE))
    # The patch of a binary file is compressed: the file itself is searched.
    head = clean_text(part[: binary.start()])
    if _holds_secret(read(path)):
        return head + "# a binary file that holds a secret: not kept\n"
    return head + binary[0]


def _holds_secret(content: bytes) -> bool:
    """As UTF-8 and as UTF-16, which git takes for binary. Compressed content is not searched."""
    texts = [
        content.decode(coding, errors="ignore") for coding in ("utf-8", "utf-16-le", "utf-16-be")
    ]
    return any(clean_text(text) != text for text in texts)
