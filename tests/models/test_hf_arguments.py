"""What is passed to transformers itself: heads, routers' losses, attention, quantisation; and masks from
tokenizers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from torch.nn.functional import cross_entropy

from tests.data.test_tokenizers import save_words
from tests.helpers import argv
from tests.models.test_hf import hf
from train.config import load
from train.data import open_datasets
from train.errors import UserError
from train.models import ModelError
from train.models.hf import HF
from train.run import build
from train.tasks._calling import outputs_of
from train.tasks.causal_lm import CausalLM

HERE = "tests.models.test_hf_arguments"
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
} | {
    "intermediate_size": 32,
    "vocab_size": 64,
    "num_labels": 3,
}
EXPERTS = {
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
}
MIXTRAL = {**BERT, "model_type": "mixtral"} | EXPERTS
T5 = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 64,
}


def texts() -> Dataset:
    """With a word that the tokenizer does not know, inside a text and at its end."""
    given = ["a token", "that zzz is", "a token that zzz", "zzz", "is no token a", "that is"]
    return Dataset.from_dict({"inputs": given, "labels": [0, 1, 2, 0, 1, 2]})


@pytest.mark.parametrize("padding", ["[PAD]", "[SEP]", "[UNK]"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_mask_is_the_tokenizers_own(tmp_path: Path, padding: str, side: str) -> None:
    """Also where the token that fills texts up is one of the text: an unknown word, or the [SEP] at
    its end.
    """
    folder = save_words(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(folder)
    about = Path(folder) / "tokenizer_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"padding_side": side}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    data = (
        f"data={{source: {HERE}.texts, max_length: 8, tokenizer: {folder}, preload: "
        f"{side == 'left'}}}"
    )
    batch = open_datasets(load(argv(tmp_path, data)).config, ("inputs", "labels")).train.first(0, 6)
    torch.manual_seed(0)
    model = HF(from_config=BERT | {"pad_token_id": tokenizer.pad_token_id}).eval()

    ours = outputs_of(model, batch)

    given = [texts()["inputs"][i] for i in batch["sample_id"].tolist()]
    fed = tokenizer(
        given, padding="max_length", max_length=8, return_tensors="pt", return_token_type_ids=False
    )
    assert torch.equal(batch["inputs"], fed["input_ids"])
    assert torch.equal(ours, model.inner(**fed).logits)
    alone = [model.inner(**tokenizer(text, return_tensors="pt")).logits[0] for text in given]
    if side == "right":
        assert torch.allclose(ours, torch.stack(alone), atol=1e-6)


def test_a_text_that_ends_in_the_padding_keeps_its_length(tmp_path: Path) -> None:
    folder = save_words(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    data = f"data={{source: {HERE}.texts, max_length: 8, tokenizer: {folder}}}"

    train: Any = open_datasets(
        load(argv(tmp_path, data, "batch.micro_tokens=16")).config, ("inputs", "labels")
    ).train

    expected = [len(tokenizer(text)["input_ids"]) for text in texts()["inputs"]]
    assert train.lengths.tolist() == expected
    batch = train.padding.cut(
        {name: column[:2] for name, column in train.samples.fetch(np.arange(6)).items()}
    )
    assert batch["inputs"].shape == batch["attention_mask"].shape == (2, max(expected[:2]))


def test_a_model_that_takes_no_mask_is_given_none() -> None:
    batch = {"inputs": torch.ones(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.bool)}

    assert outputs_of(torch.nn.Linear(6, 3), batch).shape == (2, 3)


def mask_of_the_data(size: int = 8) -> Dataset:
    ids = np.random.default_rng(0).integers(1, 64, (size, 5))
    seen = np.arange(5) < 1 + np.arange(size)[:, None] % 5
    return Dataset.from_dict({"inputs": ids, "seen": seen, "labels": [0] * size})


def test_a_mask_that_the_data_holds_is_read_by_name(tmp_path: Path) -> None:
    data = f"data={{source: {HERE}.mask_of_the_data, columns: {{attention_mask: seen}}}}"
    batch = open_datasets(load(argv(tmp_path, data)).config, ("inputs", "labels")).train.first(0, 8)
    model = HF(from_config=BERT).eval()

    mask = torch.tensor(mask_of_the_data()["seen"])[batch["sample_id"]]
    expected = model.inner(input_ids=batch["inputs"], attention_mask=mask.long()).logits
    assert torch.equal(outputs_of(model, batch), expected)


def router_batch() -> dict[str, torch.Tensor]:
    inputs = torch.randint(1, 64, (4, 6), generator=torch.Generator().manual_seed(0))
    return {"inputs": inputs, "labels": inputs.roll(-1, 1)}


def test_a_routers_loss_is_in_the_loss() -> None:
    torch.manual_seed(0)
    model, batch, task = (
        HF(task="causal-lm", from_config=MIXTRAL),
        router_batch(),
        CausalLM(router_loss=True),
    )

    sums, weights = task.loss_sum(model, batch), task.loss_weight(batch)

    assert isinstance(sums, dict)
    assert isinstance(weights, dict)
    ours = sum(sums[term] / weights[term] for term in sums)
    theirs = model.inner(
        input_ids=batch["inputs"], labels=batch["labels"], shift_labels=batch["labels"]
    )
    assert theirs.aux_loss > 0.1
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert task.couples_samples
    assert task.eval_sums(model, batch)["router"][0].item() == pytest.approx(
        4 * 0.5 * theirs.aux_loss.item(), rel=1e-6
    )


def test_a_routers_loss_that_would_be_left_out_is_refused() -> None:
    model, plain = (
        HF(task="causal-lm", from_config=MIXTRAL | {"output_router_logits": on})
        for on in (True, False)
    )

    with pytest.raises(
        UserError, match=r"Set: task\.args\.router_loss=true, or model\.args\.output"
    ):
        CausalLM().loss_sum(model, router_batch())
    with pytest.raises(
        UserError, match=r"Set: task\.args\.router_loss=false, or model\.args\.output"
    ):
        CausalLM(router_loss=True).loss_sum(plain, router_batch())


def ended_texts(size: int = 8) -> Dataset:
    """Ids that end in T5's eos, 1."""
    ids = np.random.default_rng(0).integers(2, 64, (size, 6))
    ids[:, -1] = 1
    return Dataset.from_dict({"inputs": ids, "labels": np.arange(size) % 3})


def test_an_encoder_decoder_classifies(tmp_path: Path) -> None:
    config = ", ".join(
        f"{name}: {value}" for name, value in (T5 | {"num_labels": 3, "dropout_rate": 0.0}).items()
    )
    given = argv(tmp_path, f"data={{source: {HERE}.ended_texts}}", hf(config), "precision=fp64")
    run = build(load(given), "accumulate")
    run.report.close("measured", 0)
    batch = next(iter(run.windows)).micro_batches
    inner = run.learner.module.inner

    ours = sum(run.learner.task.loss_sum(run.learner.model, micro.batch) for micro in batch)

    ids, labels = (
        torch.cat([micro.batch[name] for micro in batch]) for name in ("inputs", "labels")
    )
    logits = inner(input_ids=ids, attention_mask=(ids != 0).long()).logits
    expected = cross_entropy(logits, labels, reduction="sum")
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)


def test_attention_reaches_transformers(tmp_path: Path) -> None:
    eager = {"attn_implementation": "eager"}
    for drawn in (HF(from_config=BERT, **eager), HF(from_config=BERT | eager)):
        assert drawn.inner.config._attn_implementation == "eager"
    HF(from_config=BERT).inner.save_pretrained(tmp_path)
    opened = HF(from_pretrained=str(tmp_path), **eager)
    assert opened.inner.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "GPU or XPU is needed for FP8 quantization",
        ),
        ({"attn_implementation": "egaer"}, "cannot be opened: .*egaer"),
        ({"torch_dtype": "bfloat16"}, "Set: model.dtype=bf16"),
        ({"dtype": "bfloat16"}, "Set: model.dtype=bf16"),
        ({"device_map": "auto"}, "each rank has a device of its own"),
    ],
)
def test_arguments_that_cannot_be_are_named(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    HF(from_config=BERT).inner.save_pretrained(tmp_path)

    # What a quantisation itself raises is put in a sentence by whoever makes a model.
    with pytest.raises((ModelError, RuntimeError), match=message):
        HF(from_pretrained=str(tmp_path), **given)


def test_a_head_that_a_model_has_not_is_refused_by_name() -> None:
    with pytest.raises(
        ModelError, match=r"transformers makes none of t5; it makes sequence-classification"
    ):
        HF(task="causal-lm", from_config=T5)
    with pytest.raises(
        ModelError, match=r"quantization_config loads weights, and from_config has none"
    ):
        HF(from_config=BERT, quantization_config={})
