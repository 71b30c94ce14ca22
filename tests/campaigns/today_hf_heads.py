"""HF Trainer on a text classifier, with and without accumulation, beside the gradient of the same
16 samples at once.

python -m tests.campaigns.today_hf_heads        (seen with transformers 5.23.0, torch 2.13.0,
November 2026; extra: hf)

The Trainer expects a model that accepts **kwargs to have divided its loss by the number of labels
in the whole window. BertForSequenceClassification accepts them and takes the mean of its
micro-batch, so the gradient comes out K times as large. Isobatch never asks a model for its loss:
the task returns a sum, and the step divides it.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from tests.helpers import Array, argv, flat, record, steps, whole_batch

SAMPLES, LENGTH, WORDS = 16, 8, 64


class Bert(nn.Module):
    """(samples, LENGTH) ids of words -> (samples, 3) logits; no dropout, so that gradients can be
    compared.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.inner = BertForSequenceClassification(
            BertConfig(vocab_size=WORDS, num_labels=3, **sizes, **still)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(input_ids=inputs.long()).logits


def sentences() -> Dataset:
    random = np.random.default_rng(0)
    words, labels = random.integers(0, WORDS, (SAMPLES, LENGTH)), random.integers(0, 3, SAMPLES)
    return Dataset.from_dict({"inputs": words, "labels": labels})


def trainers_gradient(weights: Array, accumulation_steps: int) -> Array:
    """One step of SGD at rate 1: the gradient is by how much the weights moved."""
    module = Bert()
    nn.utils.vector_to_parameters(torch.from_numpy(weights).float(), module.parameters())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            max_steps=1,
            per_device_train_batch_size=SAMPLES // accumulation_steps,
            gradient_accumulation_steps=accumulation_steps,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = sentences().rename_column("inputs", "input_ids")
        trainer = Trainer(module.inner, arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return weights - flat([p.double() for p in module.parameters()])


def main() -> None:
    print("| K | HF Trainer: gradient / true | Isobatch: gradient / true |\n|---|---|---|")
    for accumulation_steps in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            arguments = argv(
                Path(folder),
                "data.source=tests.campaigns.today_hf_heads.sentences",
                "model.target=tests.campaigns.today_hf_heads.Bert",
                f"batch={{effective: {SAMPLES}, accumulation_steps: {accumulation_steps}}}",
                "duration={steps: 1}",
            )
            with contextlib.redirect_stdout(io.StringIO()):
                ours = record(arguments)
            _, true = whole_batch(
                arguments, ours.weights[0], steps(SAMPLES, SAMPLES)[0], cross_entropy
            )
        theirs = trainers_gradient(ours.weights[0], accumulation_steps)
        ratios = [
            np.linalg.norm(gradient) / np.linalg.norm(true)
            for gradient in (theirs, ours.gradients[1])
        ]
        print(f"| {accumulation_steps} | {ratios[0]:.4f} | {ratios[1]:.4f} |")


if __name__ == "__main__":
    main()
