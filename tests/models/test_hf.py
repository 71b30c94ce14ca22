"""Models of transformers: the true gradient, folders that transformers opens, and the same curve on
1 and 2 ranks.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy

import train
from tests.helpers import argv, distance, record, rows, steps, whole_batch
from tests.test_resume import segment
from train.accumulate import compute_gradient
from train.config import load
from train.main import main
from train.models._extras import fix_torchvision
from train.models.init_from import digests
from train.verify import main as verify

fix_torchvision()  # before anything of transformers is
LENGTH, WORDS = 8, 64
SIZES = (
    "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, "
    "vocab_size: 64"
)
STILL = "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0"
BERT = f"model_type: bert, {SIZES}, num_labels: 3"
GPT2 = (
    "model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, vocab_size: 257, bos_token_id: 256, "
    "eos_token_id: 256"
)
NO_DROPOUT = "resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0"
LLAMA = f"model_type: llama, {SIZES.replace('64', '257')}"
MIXTRAL = (
    "model_type: mixtral, num_key_value_heads: 2, num_local_experts: 2, "
    f"{SIZES.replace('64', '257')}"
)
SENTENCES = "data={source: tests.models.test_hf.sentences}"
ADAMW = "optimizer={target: adamw, lr: 0.01}"
TEXTS = "data={source: tests.tasks.test_tasks.texts, args: {size: 6}, block_size: 16, eval_fraction: 0.3}"


def sentences(size: int = 24, per_token: bool = False) -> Dataset:
    """Ids of words with padding (0) behind them, and a label for each sentence or each word."""
    random = np.random.default_rng(0)
    words, lengths = random.integers(1, WORDS, (size, LENGTH)), random.integers(2, LENGTH + 1, size)
    padding = np.arange(LENGTH) >= lengths[:, None]
    labels = np.where(padding, -100, random.integers(0, 3, (size, LENGTH)))
    return Dataset.from_dict(
        {
            "inputs": np.where(padding, 0, words),
            "labels": labels if per_token else random.integers(0, 3, size),
        }
    )


class Plain(nn.Module):
    """The same model as a user writes it down, with the mask made by hand."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
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
def test_the_gradient_is_that_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    given = (
        SENTENCES,
        hf(f"{BERT}, {STILL}"),
        "batch={effective: 8, micro: 2}",
        "duration={epochs: 1}",
    )

    traces = run_ranks(world_size, record, argv(tmp_path, *given))

    plain = argv(tmp_path, SENTENCES, "model={target: tests.models.test_hf.Plain}")
    for trace in traces:
        assert all(len(window.micro_batches) == 4 // world_size for window in trace.windows)
        for k, ids in enumerate(steps(24, 8), start=1):
            _, expected = whole_batch(plain, trace.weights[k - 1], ids, cross_entropy)
            assert distance(trace.gradients[k], expected) <= 1e-12


@pytest.mark.parametrize("fields", [f"{GPT2}, {NO_DROPOUT}", LLAMA], ids=["gpt2", "llama"])
def test_a_language_models_curve_is_the_same(run_ranks: Any, tmp_path: Path, fields: str) -> None:
    given = (
        TEXTS,
        hf(fields, "causal-lm"),
        "task=causal_lm",
        "batch={effective: 6}",
        "duration={steps: 3}",
    )
    run_ranks(1, start, argv(tmp_path, *given, "name=whole"))

    run_ranks(2, start, argv(tmp_path, *given, "name=split", "batch.micro=1"))

    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        whole, split = (
            [row[key] for row in rows(tmp_path, key, name)] for name in ("whole", "split")
        )
        assert len(whole) >= 1
        assert split == pytest.approx(whole, rel=1e-10)
    assert len(rows(tmp_path, name="whole")) == 3


def test_final_is_a_folder_that_transformers_opens(tmp_path: Path) -> None:
    given = (
        SENTENCES,
        hf(f"{BERT}, {STILL}"),
        "duration={steps: 2}",
        "ema.decay=0.5",
        "data.eval_fraction=0.2",
    )
    assert start(argv(tmp_path, *given)) == 0

    final = tmp_path / "run" / "final"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(final).eval()
    ours, average = train.load(tmp_path / "run"), train.load(tmp_path / "run", "ema")
    inputs = torch.tensor(sentences()["inputs"])
    expected = theirs(input_ids=inputs, attention_mask=(inputs != 0).long()).logits
    assert (theirs.config.num_labels, theirs.dtype) == (3, torch.float64)
    assert torch.equal(ours(inputs), expected)
    assert not torch.equal(average(inputs), expected)
    assert sorted(path.name for path in final.iterdir()) == [
        "config.json",
        "ema.safetensors",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "fields",
    [f"{GPT2}, {NO_DROPOUT}", f"{LLAMA}, tie_word_embeddings: true", MIXTRAL],
    ids=["gpt2", "llama", "mixtral"],
)
def test_tied_weights_and_experts_come_back(tmp_path: Path, fields: str) -> None:
    """transformers saves a tied weight once, and each expert by itself."""
    model = (
        "precision=fp32",
        TEXTS,
        hf(fields, "causal-lm"),
        "task=causal_lm",
        "batch={effective: 6}",
    )
    assert start(argv(tmp_path, *model, "duration={steps: 1}")) == 0

    inputs = torch.arange(16).reshape(2, 8)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").eval()
    ours = train.load(tmp_path / "run")
    assert torch.equal(ours(inputs), theirs(input_ids=inputs).logits)
    given = (*model, "name=again", f"model.init_from={tmp_path / 'run'}", "optimizer.lr=1e-30")
    assert start(argv(tmp_path, *given, "duration={steps: 1}")) == 0
    assert torch.equal(train.load(tmp_path / "again")(inputs), ours(inputs))


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(run_ranks: Any, tmp_path: Path) -> None:
    model = (
        TEXTS,
        hf(f"{GPT2}, {NO_DROPOUT}", "causal-lm"),
        "task=causal_lm",
        "batch={effective: 6}",
    )
    given = (*model, "checkpoint={resume: auto, every_steps: 2}", "duration={steps: 4}", ADAMW)
    (whole,) = run_ranks(1, segment, argv(tmp_path, *given, "name=whole"), "accumulate")
    run_ranks(1, segment, argv(tmp_path, *given), "accumulate", 4)

    (resumed,) = run_ranks(1, segment, argv(tmp_path, *given), "accumulate")

    assert list(resumed.ids) == [3, 4]
    assert np.array_equal(resumed.weights, whole.weights)


def test_another_model_in_the_same_folder_is_another_curve(tmp_path: Path) -> None:
    model = f"model={{target: hf, args: {{from_pretrained: {tmp_path}/base}}}}"
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        Plain().inner.bert.save_pretrained(tmp_path / "base")
        found.append(
            digests(load(argv(tmp_path, SENTENCES, model)).config)["model.args.from_pretrained"]
        )

    assert found[0] == found[1] != found[2]


def test_from_a_folder_that_may_go_away_afterwards(tmp_path: Path) -> None:
    Plain(dropout=0.25).inner.bert.save_pretrained(tmp_path / "base")
    model = f"model={{target: hf, args: {{from_pretrained: {tmp_path}/base, num_labels: 5}}}}"

    assert start(argv(tmp_path, SENTENCES, model, "duration={steps: 1}", "optimizer.lr=1e-30")) == 0

    base = transformers.AutoModel.from_pretrained(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    ours = train.load(tmp_path / "run")
    for name, weight in base.named_parameters():
        assert torch.allclose(ours.inner.bert.get_parameter(name).float(), weight, atol=1e-30)
    assert ours(torch.ones(2, 4)).shape == (2, 5)
    # it trains in train mode
    assert "(inner.bert.embeddings.dropout" in (tmp_path / "run" / "log.txt").read_text()


def test_a_label_for_each_token(tmp_path: Path) -> None:
    data = "data={source: tests.models.test_hf.sentences, args: {per_token: true}}"

    assert (
        start(
            argv(
                tmp_path,
                data,
                hf(f"{BERT}, {STILL}", "token-classification"),
                "duration={steps: 1}",
            )
        )
        == 0
    )

    assert train.load(tmp_path / "run")(torch.ones(2, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [(f"{BERT}, {STILL}", 0, "exact"), (BERT, 1, "embeddings.dropout")],
)
def test_verify_names_the_default_dropout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: str, code: int, message: str
) -> None:
    assert verify(argv(tmp_path, SENTENCES, hf(fields))) == code

    assert message in capsys.readouterr().out.splitlines()[-1]


def test_activation_checkpointing_is_the_models_own(tmp_path: Path) -> None:
    given = (SENTENCES, hf(f"{BERT}, {STILL}"), "duration={steps: 2}")
    plain = record(argv(tmp_path, *given))

    ours = record(argv(tmp_path, *given, "memory.activation_checkpointing=true"))

    assert distance(ours.weights[-1], plain.weights[-1]) <= 1e-14


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{}", "takes one of from_pretrained"),
        (
            "{task: text-clasification, from_config: {model_type: bert}}",
            "it takes sequence-classification",
        ),
        ("{from_config: {model_type: brt}}", "did you mean 'bert'?"),
        ("{from_config: {model_type: bert, hiden_size: 4}}", "did you mean 'hidden_size'?"),
        ("{from_pretrained: ./nowhere}", "from_pretrained=./nowhere cannot be opened"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    assert start(argv(tmp_path, SENTENCES, f"model={{target: hf, args: {args}}}")) == 2

    assert message in capsys.readouterr().err


def test_another_head_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Plain().inner.save_pretrained(tmp_path / "base")
    model = f"model={{target: hf, args: {{from_pretrained: {tmp_path}/base, num_labels: 5}}}}"

    assert start(argv(tmp_path, SENTENCES, model)) == 2

    assert (
        "other shapes than model.args ask for: classifier.bias, classifier.weight"
        in capsys.readouterr().err
    )


def test_without_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.models._extras.find_spec", lambda name: None)

    assert start(argv(tmp_path, SENTENCES, hf(BERT))) == 2

    assert "EXTRAS=hf ./launch.sh" in capsys.readouterr().err
