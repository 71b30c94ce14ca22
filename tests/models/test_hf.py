"""Models of transformers: the true gradient, folders that transformers opens, and the same curve on 1 and 2 ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy

import train
from tests.helpers import argv, distance, record, rows, steps, whole_batch
from train.accumulate import compute_gradient
from train.entry import main

transformers = pytest.importorskip("transformers")

LENGTH, WORDS = 8, 64
SIZES = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, vocab_size: 64"
STILL = "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0"
BERT = f"model_type: bert, {SIZES}, num_labels: 3"
GPT2 = "model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, vocab_size: 257, bos_token_id: 256, eos_token_id: 256"
NO_DROPOUT = "resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0"
LLAMA = f"model_type: llama, {SIZES.replace('64', '257')}"
MIXTRAL = f"model_type: mixtral, num_key_value_heads: 2, num_local_experts: 2, {SIZES.replace('64', '257')}"
SENTENCES = "data={source: tests.models.test_hf.sentences}"
TEXTS = "data={source: tests.tasks.test_tasks.texts, args: {size: 6}, block_size: 16, eval_fraction: 0.3}"


def sentences(size: int = 24, per_token: bool = False) -> Dataset:
    """Ids of words with padding (0) behind them, and a label for each sentence or each word."""
    random = np.random.default_rng(0)
    words, lengths = random.integers(1, WORDS, (size, LENGTH)), random.integers(2, LENGTH + 1, size)
    padding = np.arange(LENGTH) >= lengths[:, None]
    labels = np.where(padding, -100, random.integers(0, 3, (size, LENGTH)))
    return Dataset.from_dict(
        {"inputs": np.where(padding, 0, words), "labels": labels if per_token else random.integers(0, 3, size)}
    )


class Plain(nn.Module):
    """The same model as a user writes it down, with the mask made by hand."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        still = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = transformers.BertConfig(vocab_size=WORDS, num_labels=3, **sizes, **still)
        self.inner = transformers.BertForSequenceClassification(config)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=inputs.long(), attention_mask=(inputs != 0).long()).logits


def hf(fields: str, task: str = "sequence-classification") -> str:
    return f"model={{target: hf, args: {{task: {task}, from_config: {{{fields}}}}}}}"


def start(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_gradient_is_that_of_the_whole_batch(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    given = (SENTENCES, hf(f"{BERT}, {STILL}"), "batch={effective: 8, micro: 2}", "duration={epochs: 1}")

    traces = run_ranks(world_size, record, argv(tmp_path, *given))

    plain = argv(tmp_path, SENTENCES, "model={target: tests.models.test_hf.Plain}")
    for trace in traces:
        assert all(len(window.micro_batches) == 4 // world_size for window in trace.windows)
        for k, ids in enumerate(steps(24, 8), start=1):
            _, expected = whole_batch(plain, trace.weights[k - 1], ids, cross_entropy)
            assert distance(trace.gradients[k], expected) <= 1e-12


@pytest.mark.parametrize("fields", [f"{GPT2}, {NO_DROPOUT}", LLAMA], ids=["gpt2", "llama"])
def test_a_language_models_curve_is_the_same(run_ranks: Any, tmp_path: Path, fields: str) -> None:
    given = (TEXTS, hf(fields, "causal-lm"), "task=causal_lm", "batch={effective: 6}", "duration={steps: 3}")
    run_ranks(1, start, argv(tmp_path, *given, "name=whole"))

    run_ranks(2, start, argv(tmp_path, *given, "name=split", "batch.micro=1"))

    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        whole, split = ([row[key] for row in rows(tmp_path, key, name)] for name in ("whole", "split"))
        assert len(whole) >= 1
        assert split == pytest.approx(whole, rel=1e-10)
    assert len(rows(tmp_path, name="whole")) == 3


def test_final_is_a_folder_that_transformers_opens(tmp_path: Path) -> None:
    given = (SENTENCES, hf(f"{BERT}, {STILL}"), "duration={steps: 2}", "ema.decay=0.5", "data.eval_fraction=0.2")
    assert start(argv(tmp_path, *given)) == 0

    final = tmp_path / "run" / "final"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(final).eval()
    ours, average = train.load(tmp_path / "run"), train.load(tmp_path / "run", "ema")
    inputs = torch.tensor(sentences()["inputs"])
    expected = theirs(input_ids=inputs, attention_mask=(inputs != 0).long()).logits
    assert (theirs.config.num_labels, theirs.dtype) == (3, torch.float64)
    assert torch.equal(ours(inputs), expected)
    assert not torch.equal(average(inputs), expected)
    assert sorted(path.name for path in final.iterdir()) == ["config.json", "ema.safetensors", "model.safetensors"]
