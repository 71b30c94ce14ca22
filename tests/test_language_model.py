"""A language model's curve is the same for every micro-batch and number of ranks, and its tokens
are counted.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv, rows
from tests.tasks import test_tasks
from tests.test_resume import segment
from train.accumulate import compute_gradient
from train.config import ConfigError, load
from train.data.holdout import hold_out
from train.main import main

ROOT = Path(__file__).parents[1]
SIZE = 16
LM = (
    f"data={{source: tests.tasks.test_tasks.texts, args: {{size: 12}}, block_size: {SIZE}, "
    "eval_fraction: 0.3}",
    "model={target: gpt, args: {vocabulary: 257, layers: 1, heads: 2, width: 16}}",
    "task={target: causal_lm, args: {bits_per_byte: true}}",
    "optimizer={target: adamw, lr: 1e-2, no_decay: ['*norm*'], max_grad_norm: 1.0}",
)
CURVE = (
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "progress/tokens_seen",
    "batch/effective_tokens",
)


def start(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("world_size", "micro"), [(1, "2"), (2, "all"), (2, "1")])
def test_the_curve_is_the_same(run_ranks: Any, tmp_path: Path, world_size: int, micro: str) -> None:
    given = (
        *LM,
        "batch={effective_tokens: 80}",
        f"evaluate.every_tokens={3 * SIZE}",
        "duration={epochs: 2}",
    )
    run_ranks(1, start, argv(tmp_path, *given, "name=whole"))

    run_ranks(world_size, start, argv(tmp_path, *given, "name=split", f"batch.micro={micro}"))

    whole, split = read(tmp_path, "whole"), read(tmp_path, "split")
    assert len(whole) == len(split) >= 12
    for ours, expected in zip(split, whole, strict=True):
        for key in {key for key in expected if key in CURVE or key.startswith("eval/")}:
            assert ours[key] == pytest.approx(expected[key], rel=1e-10), key


def held_tokens(fraction: float) -> int:
    """Tokens of the documents that are trained on, counted by hand: the bytes of each, and the
    start before them.
    """
    texts = test_tasks.texts(12)["text"]
    kept = hold_out(len(texts), fraction).train
    return sum(len(texts[i].encode()) + 1 for i in kept)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_fills_up_the_last_block_is_no_token(
    tmp_path: Path, run_ranks: Any, streaming: bool
) -> None:
    source = (
        f"data={{source: tests.tasks.test_tasks.texts, args: {{size: 12}}, block_size: {SIZE}}}"
    )
    given = (*LM, source, "batch={effective_tokens: 48}")
    if not streaming:
        given = (*given, "data.eval_fraction=0.3", "duration={epochs: 2}")
        total = held_tokens(0.3)
    else:
        given = (
            *given,
            "data={streaming: true, eval_fraction: 0, shuffle_buffer: 0}",
            "duration={steps: 20}",
        )
        total = sum(len(text.encode()) + 1 for text in test_tasks.texts(12)["text"])
    assert total % SIZE > 1, "the last block is full: nothing is tested"
    seen = {}
    for world_size in (1, 2) if not streaming else (2,):
        assert set(run_ranks(world_size, start, argv(tmp_path, *given, f"name=r{world_size}"))) == {
            0
        }
        seen[world_size] = rows(tmp_path, name=f"r{world_size}")

    for of_ranks in seen.values():
        whole = [row for row in of_ranks if row["train/epoch"] == 1]
        assert [row["progress/tokens_seen"] for row in whole[:1]] == [total]
        counted = 0
        for row in of_ranks:
            counted += row["batch/effective_tokens"]
            assert row["progress/tokens_seen"] == counted
            assert row["batch/effective_tokens"] <= SIZE * row["batch/effective_size"]
    expected = [row["progress/tokens_seen"] for row in seen[2]]
    assert all(
        [row["progress/tokens_seen"] for row in of_ranks] == expected for of_ranks in seen.values()
    )


def test_tokens_are_counted_on_after_a_kill_on_other_ranks(tmp_path: Path, run_ranks: Any) -> None:
    """Killed within the second epoch, behind the step that holds the last block."""
    whole = LM[0].replace("eval_fraction: 0.3", "eval_fraction: 0.0")
    given = (
        whole,
        *LM[1:],
        "batch={effective: 4, micro: 1}",
        "checkpoint={resume: auto, every_steps: 3}",
    )
    total = sum(len(text.encode()) + 1 for text in test_tasks.texts(12)["text"])
    assert total % SIZE > 1, "the last block is full: nothing is tested"
    steps = math.ceil(math.ceil(total / SIZE) / 4)
    arguments = argv(tmp_path, *given, f"duration={{steps: {2 * steps}}}")

    run_ranks(2, segment, arguments, "accumulate", steps + 2)
    run_ranks(3, segment, arguments, "accumulate")

    told = rows(tmp_path)
    assert told[steps - 1]["progress/tokens_seen"] == total
    assert (
        told[-1]["progress/tokens_seen"]
        == 2 * total
        == sum(row["batch/effective_tokens"] for row in told)
    )


def test_tokens_of_a_step_decide_what_is_due(tmp_path: Path) -> None:
    given = (
        "batch={effective_tokens: 48}",
        f"duration={{tokens: {20 * SIZE + 1}}}",
        f"evaluate.every_tokens={40}",
    )
    assert start(argv(tmp_path, *LM, *given)) == 0

    told = rows(tmp_path)
    assert told[0]["batch/effective_size"] == 3
    assert told[0]["batch/effective_tokens"] == 3 * SIZE
    seen = [row["progress/tokens_seen"] for row in told]
    due = [after for before, after in pairwise([0, *seen]) if after // 40 > before // 40]
    assert [row["progress/tokens_seen"] for row in rows(tmp_path, "eval/loss")] == due
    assert "tokens    48 per step = 3 x 16; at most" in (tmp_path / "run" / "log.txt").read_text()


def test_warm_up_in_tokens(tmp_path: Path) -> None:
    warmup = (
        "schedule={warmup_tokens: 144}",
        "batch={effective_tokens: 48}",
        "duration={steps: 5}",
        "optimizer.lr=3",
    )
    assert start(argv(tmp_path, *LM, *warmup, "on_nonfinite=skip")) == 0

    assert [row["train/learning_rate"] for row in rows(tmp_path)] == pytest.approx([1, 2, 3, 3, 3])


def test_tokens_that_are_no_whole_blocks_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(argv(tmp_path, *LM, "batch={effective_tokens: 50}")) == 2

    assert "Set: batch.effective_tokens=48 or batch.effective_tokens=64" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "batch={effective_tokens: 8}",
        "duration={tokens: 8}",
        "schedule.warmup_tokens=8",
        "evaluate.every_tokens=8",
    ],
)
def test_tokens_without_blocks_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"Add data.block_size="):
        load(argv(tmp_path, override))


def test_samples_and_tokens_replace_each_other(tmp_path: Path) -> None:
    config = load(argv(tmp_path, *LM, "batch.effective_tokens=64")).config

    assert (config.batch.effective, config.batch.effective_tokens) == (None, 64)


def test_both_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        load(argv(tmp_path, *LM, "batch={effective: 4, effective_tokens: 64}"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_config_loads_and_says_how_to_run_it(path: Path) -> None:
    assert load([str(path)]).config.data.source

    header = path.read_text().partition("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("Command", "Hardware", "Result"))
