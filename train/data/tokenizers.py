"""From text to tokens and back.

A config names a tokenizer by `data.tokenizer`: `bytes`, the dotted path of your own, or the folder
of one that transformers has saved. Your own is made without arguments and has the members of
`Tokenizer`. Pure: no torch.
"""

import json
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from train.installation import how_to_install

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    vocabulary: int
    """Tokens that there are: a model's outputs."""

    @property
    def document_start(self) -> int:
        """The token at the head of each document, and nowhere else."""
        ...

    def encode(self, text: str) -> Tokens:
        """The tokens of a text, without a document_start."""
        ...

    def decode(self, tokens: Iterable[int]) -> str: ...

    def lengths(self, tokens: Tokens) -> NDArray[np.int64]:
        """UTF-8 bytes that each token stands for: what bits per byte are counted over."""
        ...


class Bytes:
    """The 256 bytes of UTF-8, and one token for the start of a document."""

    vocabulary = 257
    document_start = 256

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Bytes that are no UTF-8, such as a letter cut in two, become a replacement character."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def lengths(self, tokens: Tokens) -> NDArray[np.int64]:
        return (tokens < 256).astype(np.int64)


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says what to type."""


def complete(tokenizer: Tokenizer) -> Tokenizer:
    """The same. Raises TokenizerError where it lacks a member, some of which are needed late."""
    members = ("vocabulary", "document_start", "encode", "decode", "lengths")
    lacking = [name for name in members if not hasattr(tokenizer, name)]
    if lacking:
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no {', no '.join(lacking)}. A tokenizer of your own "
            f"needs {', '.join(members)}: see Tokenizer in train/data/tokenizers.py"
        )
    return tokenizer


class Saved:
    """A tokenizer that transformers has saved in a folder; needs the extra `hf`.

    document_start is its bos_token, else eos_token, else cls_token. A text that spells out such a
    token is split like any other text. lengths are known for byte-level tokenizers (GPT-2, Llama 3,
    Qwen) only. Raises TokenizerError.
    """

    def __init__(self, folder: str) -> None:
        if find_spec("transformers") is None:
            raise TokenizerError(
                f"{folder}: a saved tokenizer needs transformers, which is not installed. "
                f"Run: {how_to_install('hf')}"
            )
        library: Any = import_module("transformers")
        try:
            # Both are said: transformers would look for a name at the Hub, and ask on the terminal
            # whether to run the code of a folder.
            self._inner = library.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise TokenizerError(
                f"{folder} holds no tokenizer that transformers opens: {error}"
            ) from error
        self.folder = folder
        # With the tokens that were added, which vocab_size leaves out.
        self.vocabulary = len(self._inner)
        self._lengths: NDArray[np.int64] | None = _bytes_by_token(self._inner)
        self.lossy = False  # whether a text was met that lost bytes

    @property
    def document_start(self) -> int:
        inner = self._inner
        for token in (inner.bos_token_id, inner.eos_token_id, inner.cls_token_id):
            if token is not None:
                return int(token)
        raise TokenizerError(
            f"{self.folder} has no bos_token, eos_token or cls_token to begin a document with"
        )

    @property
    def padding(self) -> int:
        """The token that fills texts up; encode_one raises where there is none."""
        return int(self._inner.pad_token_id)

    @property
    def pads_left(self) -> bool:
        return bool(self._inner.padding_side == "left")

    def encode(self, text: str) -> Tokens:
        tokens = np.array(self._ids(text, add_special_tokens=False), dtype=np.int32)
        self.lossy |= self.loses(text, tokens)
        return tokens

    def loses(self, text: str, tokens: Tokens) -> bool:
        """Whether a text has other bytes than its tokens.

        Some tokenizers change letters before they split: NFC, a space in front.
        """
        if self._lengths is None:
            return False
        return int(self._lengths[tokens].sum()) != len(text.encode())

    def encode_one(self, text: str, size: int) -> Tokens:
        """At most `size` tokens, as models are trained on them: with [CLS], [SEP] or the like."""
        if self._inner.pad_token_id is None:
            raise TokenizerError(f"{self.folder} has no pad_token to fill texts up with")
        return np.array(self._ids(text, truncation=True, max_length=size), dtype=np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        # Without clean_up, which takes blanks away: the text would not come back.
        text: str = self._inner.decode(list(tokens), clean_up_tokenization_spaces=False)
        return text

    def lengths(self, tokens: Tokens) -> NDArray[np.int64]:
        if self._lengths is None or self.lossy:
            raise TokenizerError(
                f"how many bytes each token of {self.folder} stands for is not known: it does not "
                "keep every byte of a text. Set: task.args.bits_per_byte=false"
            )
        return self._lengths[tokens]

    def save(self, folder: Path) -> None:
        self._inner.save_pretrained(folder)

    def _ids(self, text: str, **options: Any) -> list[int]:
        # split_special_tokens: "</s>" in a text is text, not the end of a document. verbose=False:
        # no warning for each text that is longer than the model takes.
        encoding = self._inner(text, split_special_tokens=True, verbose=False, **options)
        ids: list[int] = encoding["input_ids"]
        return ids


def _bytes_by_token(inner: Any) -> NDArray[np.int64] | None:
    """Special tokens have 0; None: the tokenizer is not byte-level, where a letter is no byte."""
    if "ByteLevel" not in str(json.loads(inner.backend_tokenizer.to_str())["decoder"]):
        return None
    special = set(inner.all_special_ids)
    added = inner.added_tokens_decoder
    words = inner.convert_ids_to_tokens(list(range(len(inner))))
    lengths = np.zeros(len(words), np.int64)
    for token, word in enumerate(words):
        if token in special:
            continue
        if token in added:  # stands for its text, not for byte-level letters
            lengths[token] = len(str(added[token]).encode())
        else:
            # Each letter of a byte-level word stands for one byte.
            lengths[token] = len(word or "")
    return lengths


def save_tokenizer(tokenizer: str, folder: Path) -> None:
    """Write the tokenizer of data.tokenizer into a folder, where it is one that was saved."""
    if Path(tokenizer).is_dir():
        Saved(tokenizer).save(folder)
