"""The next token, from those before it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from train.batch.window import IGNORED, Batch
from train.tasks._labels import wrong_numbers

SAMPLE_TOKENS = 120
TEMPERATURE = 0.7


class CausalLM:
    """Cross-entropy over the tokens that are predicted; each counts the same. Metrics: perplexity, bits_per_byte.

    Batch: inputs (samples, T); labels (samples, T), the token that follows each input (already shifted), -100 where
    none is predicted. The model returns logits (samples, T, vocabulary).
    document_mask: hand the model `documents` (samples, T) as a second argument, so that no document sees another.
    bits_per_byte: the column `bytes` (samples,) tells how many bytes of text the labels of a sample stand for.
    Texts in blocks (data.block_size) have all four columns.
    """

    def __init__(self, document_mask: bool = False, bits_per_byte: bool = False) -> None:
        self.document_mask, self.bits_per_byte = document_mask, bits_per_byte
        more = {"documents": document_mask, "bytes": bits_per_byte}
        self.columns = ("inputs", "labels", *(name for name, wanted in more.items() if wanted))

    class_columns = ("inputs", "labels")

    def num_classes(self, model: Any, batch: Batch) -> int:
        """The tokens that the model knows."""
        anything = {**batch, "inputs": torch.zeros_like(batch["inputs"])}
        with torch.no_grad():
            return self._logits(model, anything).shape[2]

    def loss_weight(self, batch: Batch) -> float:
        return float((batch["labels"] != IGNORED).sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        logits, labels = self._logits(model, batch), batch["labels"]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return cross_entropy(wide.flatten(0, 1), labels.flatten().long(), ignore_index=IGNORED, reduction="sum")

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        nats = self.loss_sum(model, batch)
        sums = {"loss": (nats, (batch["labels"] != IGNORED).sum())}
        if self.bits_per_byte:
            sums["bits_per_byte"] = (nats / math.log(2), batch["bytes"].sum())
        return sums

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        if "loss" not in metrics:
            return metrics
        return metrics | {"perplexity": math.exp(min(metrics["loss"], 700.0))}  # exp(710) is no float

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        more = (batch["documents"],) if self.document_mask else ()
        logits: Tensor = model(batch["inputs"], *more)
        return logits

    def check(self, model: Any, one: Batch, columns: Batch) -> str | None:
        """A token that the model does not know would end the training in the middle."""
        vocabulary = self.num_classes(model, one)
        wrong = (wrong_numbers(name, columns[name], vocabulary) for name in ("inputs", "labels"))
        return next(filter(None, wrong), None)

    def samples(self, model: Any, batch: Batch, decode: Callable[[Sequence[int]], str]) -> list[dict[str, str]]:
        """How the model goes on from the first quarter of each sample: {prompt, text}.

        Drawn at a temperature of 0.7, by the same random numbers at every evaluation.
        """
        length = batch["inputs"].shape[1]
        known = max(1, length // 4)
        tokens = batch["inputs"][:, :known]
        generator = torch.Generator().manual_seed(0)
        for _ in range(SAMPLE_TOKENS):
            seen = tokens[:, -length:]
            last = self._logits(model, {"inputs": seen, "documents": torch.zeros_like(seen)})[:, -1]
            chances = (last.double() / TEMPERATURE).softmax(1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).to(tokens)
            tokens = torch.cat((tokens, drawn), dim=1)
        return [{"prompt": decode(row[:known]), "text": decode(row[known:])} for row in tokens.tolist()]
