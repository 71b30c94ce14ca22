"""The next token, from those before it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from train.batch.window import IGNORED, Batch
from train.chunked_loss import TokenLoss, nats
from train.errors import UserError
from train.tasks._calling import outputs_of, tensor_of
from train.tasks._labels import wrong_numbers

TOKENS, ROUTER = "cross_entropy", "router"
"""The terms of a loss with a router's."""

SAMPLE_TOKENS = 120
TEMPERATURE = 0.7


class CausalLM:
    """Cross-entropy over the tokens that are predicted; each counts the same. Metrics: perplexity,
    bits_per_byte.

    Batch: inputs (samples, T); labels (samples, T), the token that follows each input (already
    shifted), -100 where none is predicted. The model returns logits (samples, T, vocabulary).
    document_mask: hand the model `documents` (samples, T) as a second argument, so that no document
    sees another. router_loss: the model returns (logits, router loss of this micro-batch times its
    coefficient), as that of train/models/hf.py does under output_router_logits: a second term,
    counted once per sample, logged as train/router. It depends on which tokens are in a micro-batch
    together, as in every trainer. bits_per_byte: the column `bytes` (samples,) tells how many bytes
    of text the labels of a sample stand for. Texts in blocks (data.block_size) have all four
    columns.
    """

    chunk: int | None = None
    """Tokens whose logits are in memory at once, where memory.chunked_loss sets it."""

    def __init__(
        self, document_mask: bool = False, bits_per_byte: bool = False, router_loss: bool = False
    ) -> None:
        self.document_mask, self.bits_per_byte = document_mask, bits_per_byte
        self.router_loss = self.couples_samples = router_loss
        more = {"documents": document_mask, "bytes": bits_per_byte}
        self.columns = ("inputs", "labels", *(name for name, wanted in more.items() if wanted))

    class_columns = ("inputs", "labels")
    weight_columns = ("labels",)

    def num_classes(self, model: Any, batch: Batch) -> int:
        """The tokens that the model knows."""
        anything = {**batch, "inputs": torch.zeros_like(batch["inputs"])}
        with torch.no_grad():
            return self._logits(model, anything).shape[2]

    def loss_weight(self, batch: Batch) -> float | dict[str, float]:
        predicted = float((batch["labels"] != IGNORED).count_nonzero())
        if self.router_loss:
            return {TOKENS: predicted, ROUTER: float(len(batch["labels"]))}
        return predicted

    def loss_sum(self, model: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        loss, router = self._loss(model, batch)
        return loss if router is None else {TOKENS: loss, ROUTER: router * len(batch["labels"])}

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        loss, router = self._loss(model, batch)
        sums: dict[str, tuple[Tensor, Tensor | float]] = {
            "loss": (loss, (batch["labels"] != IGNORED).sum())
        }
        if router is not None:
            samples = float(len(batch["labels"]))
            sums[ROUTER] = (router * samples, samples)
        if self.bits_per_byte:
            sums["bits_per_byte"] = (loss / math.log(2), batch["bytes"].sum())
        return sums

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        if "loss" not in metrics:
            return metrics
        # exp(710) is no float
        return metrics | {"perplexity": math.exp(min(metrics["loss"], 700.0))}

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        return self._outputs(model, batch)[0]

    def _loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(sum of the cross-entropies of all tokens that count, router loss)"""
        labels = batch["labels"]
        if self.chunk is not None:
            return self._outputs(model, batch, loss=TokenLoss(labels, self.chunk))
        logits, router = self._outputs(model, batch)
        return nats(logits.flatten(0, 1), labels.flatten()), router

    def _outputs(self, model: Any, batch: Batch, **named: Any) -> tuple[Tensor, Tensor | None]:
        """(logits, or the loss that is asked for by its name; router loss)"""
        more = (batch["documents"],) if self.document_mask else ()
        outputs = outputs_of(model, batch, *more, **named)
        if isinstance(outputs, tuple) != self.router_loss:
            raise UserError(
                "the model gives a router loss beside its logits, which the task leaves out. "
                "Set: task.args.router_loss=true, or model.args.output_router_logits=false"
                if isinstance(outputs, tuple)
                else "task.args.router_loss=true, but the model gives no router loss beside its "
                "logits. Set: task.args.router_loss=false, or model.args.output_router_logits=true"
            )
        if not self.router_loss:
            return tensor_of(model, outputs), None
        logits, router = outputs
        return logits, router if router.dtype == torch.float64 else router.float()

    def check(self, model: Any, one: Batch, columns: Batch) -> str | None:
        """A token that the model does not know would end the training in the middle."""
        vocabulary = self.num_classes(model, one)
        wrong = (wrong_numbers(name, columns[name], vocabulary) for name in ("inputs", "labels"))
        return next(filter(None, wrong), None)

    def samples(
        self, model: Any, batch: Batch, decode: Callable[[Sequence[int]], str]
    ) -> list[dict[str, str]]:
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
        return [
            {"prompt": decode(row[:known]), "text": decode(row[known:])} for row in tokens.tolist()
        ]
