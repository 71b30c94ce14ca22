"""Texts as tokens, made once, by one rank while the others wait, and then found in a cache.

`map` of `datasets` makes them and shows its progress. They lie in a folder of its cache, one file
for each set of texts, column and tokenizer, and are memory-mapped from there.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher, generate_random_fingerprint
from filelock import FileLock

from train.config import digest, tokenizer_files
from train.data import tokenizers
from train.data.shares import DataError
from train.data.tokenizers import Bytes, Saved, Tokenizer, TokenizerError, Tokens

FOLDER = Path(datasets.config.HF_DATASETS_CACHE) / "isobatch-tokens"
AT_ONCE = 100  # texts that are held in memory
LOSSY = "lossy"


@dataclass(frozen=True)
class Tokenising:
    """How a column of texts becomes tokens."""

    column: str
    tokenizer: Tokenizer
    identity: str | None  # of the tokenizer, as `identify` has it
    # Tokens of a text, at most; None: all, behind the start of a document.
    max_length: int | None = None

    def of(self, texts: Dataset) -> Dataset:
        """The column of a set, as tokens (int32), and which texts lost bytes. Raises DataError."""
        if not len(texts):
            return texts
        options: dict[str, Any] = {
            "batched": True,
            "batch_size": AT_ONCE,
            "input_columns": [self.column],
            "remove_columns": texts.column_names,
            "features": Features({self.column: List(Value("int32")), LOSSY: Value("bool")}),
            "desc": f"Tokens of {self.column}",
        }
        try:
            if self.identity is None or not datasets.is_caching_enabled():
                # Nothing to find it by later: a random fingerprint, and no file.
                options["keep_in_memory"] = True
                options["new_fingerprint"] = generate_random_fingerprint()
                return texts.map(self._tokens, **options)
            name = self.fingerprint(texts)
            options["cache_file_name"] = str(FOLDER / f"{name}.arrow")
            options["new_fingerprint"] = name
            # Two machines that write one file on a shared disk would take it from under the one
            # that reads it.
            with _lock(name):
                return texts.map(self._tokens, **options)
        except TokenizerError as error:
            raise DataError(f"data.tokenizer: {error}") from error

    def fingerprint(self, texts: Dataset) -> str:
        """Over all that decides the tokens.

        datasets would pickle the tokenizer instead, and make the tokens anew where that fails or
        differs from process to process.
        """
        # Our own code too: tokens of an older version of it are not found.
        code = digest([Path(tokenizers.__file__), Path(__file__)])
        parts = [texts._fingerprint, self.column, self.identity, self.max_length, code]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def note(self, name: str) -> str:
        """For the screen; `name` is data.tokenizer."""
        if self.identity is None:
            return (
                "tokens    made anew by each rank at each start: what "
                f"data.tokenizer={name} does is not known beforehand"
            )
        return (
            f"tokens    of column {self.column!r}: kept in the cache of datasets, where a run "
            "finds them"
        )

    def _tokens(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        tokens: list[Tokens] = []
        lossy: list[bool] = []
        for text in texts:
            if self.max_length is not None:
                assert isinstance(self.tokenizer, Saved)
                tokens.append(self.tokenizer.encode_one(text, self.max_length))
                lossy.append(False)
                continue
            document = document_tokens(text, self.tokenizer)
            tokens.append(document)
            lossy.append(
                isinstance(self.tokenizer, Saved) and self.tokenizer.loses(text, document[1:])
            )
        return {self.column: tokens, LOSSY: lossy}


def identify(name: str, tokenizer: Tokenizer) -> str | None:
    """Equal identities: the same tokens of the same text. None: that is not known beforehand.

    `name` is data.tokenizer. Of the user's own class: its sources, and what it holds when it has
    been made, such as a vocabulary that it has read. What it reads later is unknown, and a class of
    a library may do anything.
    """
    if type(tokenizer) is Bytes:
        return "bytes"
    if type(tokenizer) is Saved:
        libraries = [f"{library} {version(library)}" for library in ("transformers", "tokenizers")]
        return " ".join([digest(tokenizer_files(tokenizer.folder)), *libraries])
    sources = tokenizer_files(name)
    try:
        return f"{digest(sources)} {Hasher.hash(tokenizer)}" if sources else None
    except Exception:  # whatever a class raises that cannot be pickled
        return None


def document_tokens(text: str, tokenizer: Tokenizer) -> Tokens:
    """What stands for a text in the stream of all documents."""
    return np.concatenate(([tokenizer.document_start], tokenizer.encode(text))).astype(np.int32)


def stream_of(documents: Dataset, column: str) -> Iterator[Tokens]:
    """The tokens of all documents, one after the other, in pieces of any length."""
    for table in documents.with_format("arrow").iter(batch_size=1000):
        yield pc.list_flatten(table.column(column)).to_numpy()


def any_lossy(documents: Dataset) -> bool:
    """Whether any of the texts lost bytes."""
    table = documents.select_columns([LOSSY]).with_format("arrow")[:]
    return bool(pc.any(table.column(LOSSY)).as_py())


def _lock(name: str) -> AbstractContextManager[object]:
    """Another run, or machine, that makes the same tokens waits for it, and then finds them."""
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        return FileLock(FOLDER / f"{name}.lock").acquire()
    except OSError as error:
        raise DataError(
            f"tokens are kept in the cache of datasets, and {FOLDER} cannot be written to: "
            f"{error}. Set: HF_DATASETS_CACHE=FOLDER, one that can be, before the command"
        ) from error
