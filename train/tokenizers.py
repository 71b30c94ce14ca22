"""From text to tokens and back. A config names one by `data.tokenizer`: `bytes`, or the dotted path of your own.

A tokenizer is made without arguments and has the members of `Tokenizer`. Pure: no torch.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    vocabulary: int
    """Tokens that there are: a model's outputs."""
    document_start: int
    """The token that stands at the head of each document, and nowhere else: what the first real token follows from."""

    def encode(self, text: str) -> Tokens:
        """The tokens of a text, without a document_start."""
        ...

    def decode(self, tokens: Iterable[int]) -> str: ...

    def lengths(self, tokens: Tokens) -> NDArray[np.int64]:
        """UTF-8 bytes that each token stands for: what bits per byte are counted over."""
        ...


class Bytes:
    """The 256 bytes of UTF-8, and one token for the start of a document: nothing to train, nothing to download."""

    vocabulary = 257
    document_start = 256

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Bytes that are no UTF-8, such as a letter cut in two, become a replacement character."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def lengths(self, tokens: Tokens) -> NDArray[np.int64]:
        return (tokens < 256).astype(np.int64)
