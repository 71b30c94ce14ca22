"""Language modelling: the next token, from those before it."""

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

TOKENS = "cross_entropy"
ROUTER = "router"
"""The terms of a loss with a router's."""

SAMPLE_TOKENS = 120
"""Tokens that are generated for a table of samples."""

TEMPERATURE = 0.7

LARGEST_EXPONENT = 700.0
"""exp(710) is beyond float64."""


class CausalLM:
    """Cross-entropy over the predicted tokens. Metrics: perplexity, bits_per_byte.

    Batch: inputs (samples, T); labels (samples, T), the token that follows each input (already
    shifted), -100 where none is predicted. The model returns logits (samples, T, vocabulary).

    document_mask: the model gets `documents` (samples, T) as a second argument, so that no document
    sees another. bits_per_byte: the column `bytes` (samples,) holds the bytes of text that the
    labels of a sample stand for. Texts in blocks (data.block_size) have all four columns.

    router_loss: the model returns (logits, router loss of this micro-batch times its coefficient),
    as train/models/hf.py does with output_router_logits. It is a second term, counted once per
    sample and logged as train/router. It depends on which tokens are in a micro-batch together, as
    in every trainer.
    """

    chunk: int | None = None
    """Tokens whose logits are in memory at once; memory.chunked_loss sets it."""

    def __init__(
        self, document_mask: bool = False, bits_per_byte: bool = False, router_loss: bool = False
    ) -> None:
        self.document_mask = document_mask
        self.bits_per_byte = bits_per_byte
        self.router_loss = router_loss
        self.couples_samples = router_loss
        columns = ["inputs", "labels"]
        if document_mask:
            columns.append("documents")
        if bits_per_byte:
            columns.append("bytes")
        self.columns = tuple(columns)

    class_columns = ("inputs", "labels")
    weight_columns = ("labels",)

    def num_classes(self, model: Any, batch: Batch) -> int:
        """The model's vocabulary."""
        # Token 0 everywhere: those of the batch may be the ones that the model does not know.
        zeros = {**batch, "inputs": torch.zeros_like(batch["inputs"])}
        with torch.no_grad():
            return self._logits(model, zeros).shape[2]

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
        return metrics | {"perplexity": math.exp(min(metrics["loss"], LARGEST_EXPONENT))}

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        return self._outputs(model, batch)[0]

    def _loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(sum of the cross-entropies of the predicted tokens, router loss)"""
        labels = batch["labels"]
        if self.chunk is not None:
            return self._outputs(model, batch, loss=TokenLoss(labels, self.chunk))
        logits, router = self._outputs(model, batch)
        return nats(logits.flatten(0, 1), labels.flatten()), router

    def _outputs(self, model: Any, batch: Batch, **named: Any) -> tuple[Tensor, Tensor | None]:
        """(logits, or the loss where it is passed by name; router loss)"""
        more = (batch["documents"],) if self.document_mask else ()
        outputs = outputs_of(model, batch, *more, **named)
        has_router_loss = isinstance(outputs, tuple)
        if has_router_loss != self.router_loss:
            raise _other_router_loss(has_router_loss)
        if not self.router_loss:
            return tensor_of(model, outputs), None
        logits, router = outputs
        if router.dtype != torch.float64:
            router = router.float()
        return logits, router

    def check(self, model: Any, one: Batch, columns: Batch) -> str | None:
        """Else a token that the model does not know would end the training in the middle."""
        vocabulary = self.num_classes(model, one)
        for name in ("inputs", "labels"):
            problem = wrong_numbers(name, columns[name], vocabulary)
            if problem:
                return problem
        return None

    def samples(
        self, model: Any, batch: Batch, decode: Callable[[Sequence[int]], str]
    ) -> list[dict[str, str]]:
        """How the model continues the first quarter of each sample: {prompt, text}.

        Sampled with the same random numbers at every evaluation.
        """
        length = batch["inputs"].shape[1]
        prompt_length = max(1, length // 4)
        tokens = batch["inputs"][:, :prompt_length]
        generator = torch.Generator().manual_seed(0)
        for _ in range(SAMPLE_TOKENS):
            context = tokens[:, -length:]
            one_document = {"inputs": context, "documents": torch.zeros_like(context)}
            logits = self._logits(model, one_document)[:, -1]
            probabilities = (logits.double() / TEMPERATURE).softmax(1).cpu()
            sampled = torch.multinomial(probabilities, 1, generator=generator).to(tokens)
            tokens = torch.cat((tokens, sampled), dim=1)
        rows = []
        for row in tokens.tolist():
            rows.append(
                {"prompt": decode(row[:prompt_length]), "text": decode(row[prompt_length:])}
            )
        return rows


def _other_router_loss(has_router_loss: bool) -> UserError:
    if has_router_loss:
        return UserError(
            "the model gives a router loss beside its logits, which the task leaves out. "
            "Set: task.args.router_loss=true, or model.args.output_router_logits=false"
        )
    return UserError(
        "task.args.router_loss=true, but the model gives no router loss beside its logits. Set: "
        "task.args.router_loss=false, or model.args.output_router_logits=true"
    )
