"""FSDP2 around language models: blocks, tied weights, transformers' own classes, narrower types,
recomputation.
"""

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState

from tests.distributed.test_sharded import FSDP2, several
from tests.helpers import Trace, argv, distance, record
from tests.models.test_hf import GPT2, LLAMA, NO_DROPOUT, TEXTS
from tests.test_language_model import LM
from train import load as load_trained

SMALL = (*LM, "batch={effective: 6, micro: 1}", "duration={steps: 4}")
HF = (
    TEXTS,
    "task=causal_lm",
    "optimizer={target: adamw, lr: 0.01}",
    "batch={effective: 6, micro: 1}",
)
CASES: dict[str, tuple[str, ...]] = {
    "gpt": SMALL,
    "recomputed": (*SMALL, "memory.activation_checkpointing=true"),
    "llama": (
        *HF,
        f"model={{target: hf, args: {{task: causal-lm, from_config: {{{LLAMA}}}}}}}",
        "duration={steps: 4}",
    ),
    "gpt2": (
        *HF,
        f"model={{target: hf, args: {{task: causal-lm, from_config: {{{GPT2}, {NO_DROPOUT}}}}}}}",
        "duration={steps: 4}",
    ),
}
NARROW: dict[str, tuple[str, ...]] = {
    "fp32": (*SMALL, "precision=fp32"),
    "bf16": (*SMALL, "precision=bf16"),
    "parameters": (*SMALL, "precision=fp32", "model.dtype=bf16"),
}


def test_language_models(run_ranks: Any, tmp_path: Path) -> None:
    given = {name: argv(tmp_path, *words, f"name={name}") for name, words in CASES.items()}
    expected = {
        name: record(argv(tmp_path, *words, f"name=one-{name}")) for name, words in CASES.items()
    }

    traces = run_ranks(2, several, list(given.values()))[0]

    for name, trace in zip(given, traces, strict=True):
        assert distance(trace.weights[-1], expected[name].weights[-1]) <= 1e-11, name
        ours, theirs = (load_trained(tmp_path / run).state_dict() for run in (name, f"one-{name}"))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], rtol=1e-9) for key in theirs)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2" / "final")
    assert opened.lm_head.weight is opened.transformer.wte.weight
    assert torch.equal(
        opened.lm_head.weight.double(),
        load_trained(tmp_path / "gpt2").inner.lm_head.weight.double(),
    )


def test_in_narrower_types_it_is_as_close_as_where_each_rank_holds_all(
    run_ranks: Any, tmp_path: Path
) -> None:
    exact = record(argv(tmp_path, *SMALL, "name=exact"))
    given = [argv(tmp_path, *words, f"name={name}") for name, words in NARROW.items()]
    whole = run_ranks(
        2, in_turn, False, [[*words, f"name=whole-{i}"] for i, words in enumerate(given)]
    )[0]

    divided = run_ranks(2, in_turn, True, given)[0]

    for ours, theirs, name in zip(divided, whole, NARROW, strict=True):
        expected = exact.gradients[1]
        assert distance(ours.gradients[1], expected) <= 1.1 * distance(
            theirs.gradients[1], expected
        ), name


def in_turn(divided: bool, given: list[list[str]]) -> list[Trace]:
    if divided:
        os.environ.update(FSDP2)
    traces = []
    for arguments in given:
        AcceleratorState._reset_state()  # it knows one precision per process
        traces.append(record(arguments))
    return traces
