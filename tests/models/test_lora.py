"""The guide's recipe for LoRA: the true gradient of the adapters, nothing else changed, and a way
out.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

import train
from tests.helpers import argv, distance, record, steps, whole_batch
from tests.house.fresh_copy import write_from_guide
from tests.models.test_hf import SENTENCES, TEXTS, Plain, start
from tests.test_resume import segment

# peft (0.21) asks transformers (5.23) by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

ARGS = "lora: {r: 2, target_modules: all-linear, modules_to_save: [classifier]}, num_labels: 3"


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path) -> Iterator[None]:
    """my/lora.py as the guide has it."""
    write_from_guide("my/lora.py", tmp_path)
    sys.path.append(str(tmp_path))
    yield
    sys.path.remove(str(tmp_path))
    sys.modules.pop("lora", None)


@pytest.fixture
def of_bert(tmp_path: Path) -> str:
    torch.manual_seed(5)
    Plain().inner.save_pretrained(tmp_path / "base")
    return f"model={{target: lora.LoRA, args: {{from_pretrained: {tmp_path}/base, {ARGS}}}}}"


def there(folder: Path, function: Callable[..., Any], *args: Any) -> Any:
    """On a rank, where `lora` can be imported too."""
    sys.path.append(str(folder))
    return function(*args)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_gradient_is_that_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, of_bert: str, world_size: int
) -> None:
    arguments = argv(tmp_path, SENTENCES, of_bert, "batch={effective: 8, micro: 2}")

    traces = run_ranks(world_size, there, tmp_path, record, arguments)

    for trace in traces:
        assert all(len(window.micro_batches) == 4 // world_size for window in trace.windows)
        assert len(trace.weights[0]) < 2000  # of 3,955
        for k, ids in enumerate(steps(24, 8), start=1):
            _, expected = whole_batch(arguments, trace.weights[k - 1], ids, cross_entropy)
            assert distance(trace.gradients[k], expected) <= 1e-12


def test_only_adapters_change_and_both_ways_out_give_the_same(tmp_path: Path) -> None:
    import peft  # after tests.models.test_hf, which mends torchvision

    base = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(
            vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    base.save_pretrained(tmp_path / "llama")
    args = (
        f"task: causal-lm, from_pretrained: {tmp_path}/llama, lora: {{r: 2, target_modules: "
        "all-linear}"
    )
    model = (
        TEXTS,
        f"model={{target: lora.LoRA, args: {{{args}}}}}",
        "task=causal_lm",
        "precision=fp32",
    )

    assert (
        start(argv(tmp_path, *model, "batch={effective: 6, micro: 2}", "duration={steps: 3}")) == 0
    )

    adapted, inputs = (
        train.load(tmp_path / "run", trust=True).whole.inner,
        torch.arange(16).reshape(2, 8),
    )
    ours = adapted(input_ids=inputs).logits
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    for name, weight in base.named_parameters():
        name, attribute = f"base_model.model.{name}".rsplit(".", 1)
        layer = adapted.get_submodule(name)
        assert torch.equal(getattr(getattr(layer, "base_layer", layer), attribute), weight)
    assert trained
    assert all("lora_" in name for name in trained)
    assert not torch.allclose(base.eval()(input_ids=inputs).logits, ours, atol=1e-4)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(again(input_ids=inputs).logits, ours, atol=1e-6)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(merged(input_ids=inputs).logits, ours, atol=1e-6)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    run_ranks: Any, tmp_path: Path, of_bert: str
) -> None:
    more = (
        "checkpoint={resume: auto, every_steps: 2}",
        "duration={steps: 4}",
        "optimizer={target: adamw, lr: 0.01}",
    )
    given = (SENTENCES, of_bert, *more)
    (whole,) = run_ranks(
        1, there, tmp_path, segment, argv(tmp_path, *given, "name=whole"), "accumulate"
    )
    run_ranks(1, there, tmp_path, segment, argv(tmp_path, *given), "accumulate", 4)

    (resumed,) = run_ranks(1, there, tmp_path, segment, argv(tmp_path, *given), "accumulate")

    assert list(resumed.ids) == [3, 4]
    assert np.array_equal(resumed.weights, whole.weights)
