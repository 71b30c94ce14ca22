"""A tokenizer that transformers has saved: no text is lost, bytes are counted or refused, final/
holds it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.helpers import argv, rows
from train.accumulate import compute_gradient
from train.config import load
from train.data import tokenizers
from train.data.tokenizers import Saved, TokenizerError
from train.main import main
from train.models.init_from import digests

TEXT = "a token <|end|> that is no token, wörds\n日本 and  spaces "
END = {"bos_token": "<|end|>", "eos_token": "<|end|>"}
BERTS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def few_texts() -> Dataset:
    return Dataset.from_dict(
        {"text": [f"{TEXT}{i} " * 4 for i in range(8)], "kind": ["a", "b"] * 4}
    )


def save_byte_level(folder: Path) -> str:
    """As GPT-2's is."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=280,
            special_tokens=["<|end|>"],
            initial_alphabet=letters,
            show_progress=False,
        ),
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **END).save_pretrained(folder)
    return str(folder)


def save_words(folder: Path) -> str:
    """As BERT's is: [PAD] is 0, [CLS] 1, [SEP] 2, [UNK] 3."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "token", "that", "is", "no", "and", "spaces"]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **BERTS).save_pretrained(folder)
    return str(folder)


def start(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


def test_byte_level_tokens_keep_every_byte(tmp_path: Path) -> None:
    saved = Saved(save_byte_level(tmp_path / "saved"))

    tokens = saved.encode(TEXT)

    assert saved.decode(tokens.tolist()) == TEXT
    assert saved.document_start not in tokens
    assert saved.lengths(tokens).sum() == len(TEXT.encode()) > len(tokens)
    assert saved.lengths(np.array([saved.document_start], np.int32)).sum() == 0


def test_bytes_of_other_tokenizers_are_refused(tmp_path: Path) -> None:
    saved = Saved(save_words(tmp_path / "saved"))

    with pytest.raises(TokenizerError, match="bits_per_byte=false"):
        saved.lengths(saved.encode(TEXT))


def test_a_tokenizer_that_changes_letters_is_found_out(tmp_path: Path) -> None:
    saved = Saved(save_byte_level(tmp_path / "saved"))
    saved._inner.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    tokens = saved.encode("word")

    with pytest.raises(TokenizerError, match="does not keep every byte"):
        saved.lengths(tokens)


def test_one_text_is_cut(tmp_path: Path) -> None:
    saved = Saved(save_words(tmp_path / "saved"))

    assert saved.encode_one("a token", 6).tolist() == [1, 4, 5, 2]
    assert saved.encode_one("a token that is no [CLS]", 4).tolist() == [1, 4, 5, 2]


def test_a_language_model_on_saved_tokens(tmp_path: Path) -> None:
    folder = save_byte_level(tmp_path / "saved")
    source = "tests.data.test_tokenizers.few_texts"
    text = f"data={{source: {source}, block_size: 8, tokenizer: {folder}, eval_fraction: 0.25}}"
    words = Saved(folder).vocabulary
    sizes = (
        f"model_type: gpt2, n_embd: 8, n_layer: 1, n_head: 1, vocab_size: {words}, bos_token_id: "
        "0, eos_token_id: 0"
    )
    model = f"model={{target: hf, args: {{task: causal-lm, from_config: {{{sizes}}}}}}}"
    task = "task={target: causal_lm, args: {bits_per_byte: true}}"

    assert (
        start(argv(tmp_path, text, model, task, "batch={effective: 4}", "duration={steps: 2}")) == 0
    )

    final = tmp_path / "run" / "final"
    assert transformers.AutoTokenizer.from_pretrained(final).bos_token == "<|end|>"
    assert transformers.AutoModelForCausalLM.from_pretrained(final).config.vocab_size == words
    (row,) = rows(tmp_path, "eval/bits_per_byte")
    assert 0 < row["eval/bits_per_byte"] < row["eval/loss"] / np.log(2)


def classifier(tokenizer: str) -> list[str]:
    columns = "columns: {inputs: text, labels: kind}, max_length: 8"
    text = (
        f"data={{source: tests.data.test_tokenizers.few_texts, tokenizer: {tokenizer}, {columns}}}"
    )
    sizes = (
        "model_type: bert, vocab_size: 11, hidden_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 1"
    )
    model = f"model={{target: hf, args: {{from_config: {{{sizes}}}}}}}"
    return [text, model, "batch={effective: 4}", "duration={steps: 1}"]


def test_a_classifier_on_saved_tokens(tmp_path: Path) -> None:
    assert start(argv(tmp_path, *classifier(save_words(tmp_path / "saved")))) == 0

    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "final").cls_token == "[CLS]"
    )


def test_a_tokenizer_is_what_is_in_its_folder_wherever_that_lies(tmp_path: Path) -> None:
    def told(folder: str) -> str:
        source = "source: tests.data.test_tokenizers.few_texts"
        return digests(load(argv(tmp_path, f"data={{{source}, tokenizer: {folder}}}")).config)[
            "data.tokenizer"
        ]

    here, moved = save_byte_level(tmp_path / "saved"), save_byte_level(tmp_path / "moved")
    before = told(here)

    assert told(moved) == before
    save_words(tmp_path / "saved")
    assert told(here) != before


def test_a_tokenizer_that_has_moved_is_the_same_curve(tmp_path: Path) -> None:
    for place in ("here", "there"):
        given = classifier(save_words(tmp_path / "tokenizers" / place))
        assert start(argv(tmp_path, *given, f"name={place}")) == 0

    plans = [
        json.loads((tmp_path / place / "plan.json").read_text()) for place in ("here", "there")
    ]
    assert plans[0]["identity"]["data.tokenizer"].startswith("sha256 ")
    assert plans[0]["curve_hash"] == plans[1]["curve_hash"]


@pytest.mark.parametrize("missing", ["a tokenizer", "transformers"])
def test_what_is_missing_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
) -> None:
    if missing == "transformers":
        monkeypatch.setattr(tokenizers, "find_spec", lambda name: None)
    data = (
        "data={source: tests.data.test_tokenizers.few_texts, block_size: 8, tokenizer: "
        f"{tmp_path}}}"
    )

    assert start(argv(tmp_path, data, "task=causal_lm")) == 2

    expected: Any = {
        "transformers": "EXTRAS=hf ./launch.sh",
        "a tokenizer": "holds no tokenizer that transformers opens",
    }
    assert expected[missing] in capsys.readouterr().err
