"""batch.micro_tokens: the same samples, gradient and curve, with most of the padding left out."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.data.test_tokenizers import save_words
from tests.helpers import Array, argv, distance, flat, record, record_all, rows, steps
from tests.models.test_hf import STILL
from tests.test_resume import repeatable, segment
from tests.test_synchronisation import counting
from train.accumulate import compute_gradient
from train.batch import make_plan, sample_ids
from train.batch.window import Batch, Place
from train.config import load
from train.data import ByLength, Padding, Sets, open_sets
from train.data.lengths import micro_steps
from train.data.shares import RankShare
from train.evaluate import evaluate
from train.exactness.reference_gradient import plain_forward
from train.main import main
from train.models.text_conv import TextConv
from train.verify import main as verify

HERE = "tests.data.test_by_length"
LENGTH = 24
LONG = 256
TEXTS = (
    f"data={{source: {HERE}.texts, max_length: {LENGTH}}}",
    "model={target: text_conv, args: {outputs: 3}}",
)
ADAMW = "optimizer={target: adamw, lr: 0.01}"
BERT = (
    "model_type: bert, vocab_size: 257, pad_token_id: 256, hidden_size: 16, num_hidden_layers: 1, "
    f"num_attention_heads: 2, intermediate_size: 32, {STILL}"
)


# Data and models


def batches(share: RankShare) -> list[Batch]:
    return [micro_batch.batch for micro_batch in share]


def words(size: int) -> list[str]:
    """Texts of any length, of some bytes more than LENGTH too."""
    random = np.random.default_rng(0)
    return [
        "".join(random.choice([*"abcdeé"], random.integers(0, LENGTH + 4))) for _ in range(size)
    ]


def texts(size: int = 37) -> Dataset:
    labels = np.random.default_rng(1).integers(0, 3, size)
    return Dataset.from_dict({"inputs": words(size), "labels": labels})


def long_texts(size: int = 64) -> Dataset:
    """Of up to LONG bytes: long enough that more micro-steps than there must be save more than they
    cost.
    """
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.2, 0.6, size).astype(int), 1, LONG)
    data = ["".join(random.choice([*"abcde"], length)) for length in lengths]
    return Dataset.from_dict({"inputs": data, "labels": random.integers(0, 3, size)})


def full(size: int = 40) -> Dataset:
    """No text is shorter than LENGTH, but for the last one in the order of epoch 0, seed 0, which
    is empty.
    """
    data = ["a" * LENGTH] * size
    data[sample_ids(size, 0, 0, 0, size)[-1]] = ""
    return Dataset.from_dict({"inputs": data, "labels": [0, 1] * (size // 2)})


def short_first(size: int = 20) -> Dataset:
    """The first text in the order of epoch 0, seed 0, has one token, all others LENGTH."""
    data = ["a" * LENGTH] * size
    data[sample_ids(size, 0, 0, 0, 1)[0]] = "a"
    return Dataset.from_dict({"inputs": data, "labels": [0, 1] * (size // 2)})


def tagged(size: int = 20, behind: int = 0, wrong: bool = False) -> Dataset:
    """A label for each byte; `behind`: some more count than the text has bytes. `wrong`: one is no
    label.
    """
    data = words(size)
    lengths = np.array([min(LENGTH, len(text.encode())) for text in data])
    labels = np.random.default_rng(1).integers(0, 3, (size, LENGTH))
    labels[np.arange(LENGTH) >= lengths[:, None] + behind] = -100
    labels[0, 0] = 7 if wrong else -100
    return Dataset.from_dict({"inputs": data, "labels": labels})


def pairs(size: int = 20) -> Dataset:
    return Dataset.from_dict(
        {"inputs": words(size), "other": words(size)[::-1], "labels": [0] * size}
    )


def masked(size: int = 20) -> Dataset:
    return texts(size).add_column("mask", np.ones((size, LENGTH)).tolist())


def unlabelled(size: int = 20) -> Dataset:
    """An empty text, which is the shortest, does not count."""
    data = ["", *(f"a{text}" for text in words(size - 1))]
    return Dataset.from_dict({"inputs": data, "labels": [0 if text else -100 for text in data]})


def stream() -> IterableDataset:
    return texts().to_iterable_dataset()


class Tagger(nn.Module):
    """(samples, T) -> (samples, 3, T)"""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(257, 8), nn.Linear(8, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens).transpose(1, 2)


class Mean(nn.Module):
    """The mean over all places of a text, those behind its end included."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(257, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(1))


class UntrainedMean(Mean):
    """With a head of zeros no loss tells that the padding is seen."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class HardlySeen(Mean):
    """The padding changes a loss by less than bf16 rounds."""

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.embedding(tokens)
        own = (features * (tokens != 256).unsqueeze(2)).sum(1)
        return self.head(own + 0.01 * features.mean(1))


class Flat(nn.Module):
    """Takes texts of LENGTH tokens only."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Embedding(257, 8), nn.Flatten(), nn.Linear(8 * LENGTH, outputs)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


class Wide(nn.Module):
    """Takes texts of 16 tokens or more."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding, self.convolution = (
            nn.Embedding(257, 8, padding_idx=256),
            nn.Conv1d(8, outputs, 16),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.convolution(self.embedding(tokens).transpose(1, 2)).amax(2)


class Attending(nn.Module):
    """The mean place of a text, by attention in which -1e30 masks: of a text without a token all
    places are seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(257, 1), nn.Linear(1, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = self.embedding(tokens)[..., 0].masked_fill(tokens == 256, -1e30).softmax(1)
        return self.head((seen * torch.arange(tokens.shape[1])).sum(1, keepdim=True))


class OnlyInTraining(TextConv):
    """As text_conv; in training, how much it was padded counts too."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * (tokens.shape[1] if self.training else 1)


class Asking:
    """A task of a user's, with more columns."""

    def __init__(self, more: str) -> None:
        self.columns = ("inputs", "labels", more)

    def loss_weight(self, batch: Any) -> float:
        return float(len(batch["labels"]))

    def loss_sum(self, model: Any, batch: Any) -> Tensor:
        return cross_entropy(model(batch["inputs"]), batch["labels"], reduction="sum")

    def eval_sums(self, model: Any, batch: Any) -> dict[str, tuple[Tensor, float]]:
        return {"loss": (self.loss_sum(model, batch), self.loss_weight(batch))}


def padded(text: str, length: int = LENGTH) -> list[int]:
    encoded = text.encode()[:length]
    return [*encoded] + [256] * (length - len(encoded))


def whole_gradient(
    weights: Array, ids: Array, data: Dataset, model: nn.Module, length: int = LENGTH
) -> Array:
    """One backward pass over the samples, all of `length` tokens, in plain PyTorch."""
    module = model.double()
    nn.utils.vector_to_parameters(torch.from_numpy(weights), module.parameters())
    chosen = data[ids]
    inputs, labels = (
        torch.tensor([padded(text, length) for text in chosen["inputs"]]),
        torch.tensor(chosen["labels"]),
    )
    loss = cross_entropy(module(inputs), labels)
    return flat(torch.autograd.grad(loss, list(module.parameters())))


def sets_of(folder: Path, *overrides: str) -> Sets:
    config = load(argv(folder, *TEXTS, f"batch.micro_tokens={2 * LENGTH}", *overrides)).config
    return open_sets(config, ("inputs", "labels"))


# The samples, the gradient, the curve


@pytest.mark.parametrize(
    ("world_size", "size", "effective", "tokens"),
    [
        (1, 37, 8, LENGTH),
        (1, 37, 16, 70),
        (2, 37, 10, 50),
        (3, 37, 10, 40),
        (2, 1, 1, 100),
        (3, 7, 7, LENGTH),
    ],
)
def test_gradient_and_samples_are_those_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, world_size: int, size: int, effective: int, tokens: int
) -> None:
    given = (*TEXTS, f"data.args.size={size}", f"batch.effective={effective}", "duration.epochs=2")
    plain = argv(tmp_path, *given, "name=plain")
    ours = argv(tmp_path, *given, f"batch.micro_tokens={tokens}")

    ranks = run_ranks(world_size, record_all, [plain, ours])

    batches = steps(size, effective, epochs=2)
    for k, ids in enumerate(batches):
        for run in (0, 1):
            assert sorted(i for traces in ranks for i in traces[run].ids[k]) == sorted(ids.tolist())
        assert len({len(traces[1].sizes[k]) for traces in ranks}) == 1, (
            "another number of micro-steps"
        )
        weights, gradient = ranks[0][1].weights[k], ranks[0][1].gradients[k + 1]
        expected = whole_gradient(weights, ids, texts(size), TextConv(outputs=3))
        assert distance(gradient, expected) <= 1e-12
        assert all(np.array_equal(traces[1].gradients[k + 1], gradient) for traces in ranks)
    logged = rows(tmp_path)
    assert len(logged) == len(batches)
    assert [row["batch/effective_size"] for row in logged] == [len(ids) for ids in batches]
    assert [row["batch/accumulation_steps"] for row in logged] == [
        len(sizes) for sizes in ranks[0][1].sizes
    ]
    sizes = zip(*(traces[1].sizes for traces in ranks), strict=True)
    assert [row["batch/micro_size"] for row in logged] == [
        max(map(max, of_step)) for of_step in sizes
    ]
    for mine, other in zip(logged, rows(tmp_path, name="plain"), strict=True):
        assert mine["train/loss"] == pytest.approx(other["train/loss"], rel=1e-10)
    if size == 37 and tokens < 100:
        assert max(len(sizes) for sizes in ranks[0][1].sizes) > 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_more_micro_steps_than_there_must_be_give_the_same_gradient(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    limit = 8 * LONG
    data = f"data={{source: {HERE}.long_texts, max_length: {LONG}}}"
    given = (
        data,
        TEXTS[1],
        "batch.effective=32",
        f"batch.micro_tokens={limit}",
        "duration.epochs=2",
    )

    ranks = run_ranks(world_size, record, argv(tmp_path, *given))

    lengths = np.array([len(text) for text in long_texts()["inputs"]])
    more = []
    for k, ids in enumerate(steps(64, 32, epochs=2)):
        assert sorted(i for trace in ranks for i in trace.ids[k]) == sorted(ids.tolist())
        count = len(ranks[0].sizes[k])
        assert count <= 32 // 8 // world_size
        more.append(count - micro_steps(np.sort(lengths[ids]).tolist(), world_size, limit))
        assert {len(trace.sizes[k]) for trace in ranks} == {count}
        expected = whole_gradient(ranks[0].weights[k], ids, long_texts(), TextConv(outputs=3), LONG)
        assert all(distance(trace.gradients[k + 1], expected) <= 1e-12 for trace in ranks)
    assert max(more) > 0


@pytest.mark.parametrize("world_size", [1, 2])
def test_labels_of_tokens_are_cut_with_them(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    data = f"data={{source: {HERE}.tagged, max_length: {LENGTH}, args: {{behind: 3}}}}"
    given = (data, f"model={{target: {HERE}.Tagger, args: {{}}}}", "batch.effective=10")

    trace = run_ranks(world_size, record, argv(tmp_path, *given, "batch.micro_tokens=60"))[0]

    for k, ids in enumerate(steps(20, 10)):
        expected = whole_gradient(trace.weights[k], ids, tagged(behind=3), Tagger())
        assert distance(trace.gradients[k + 1], expected) <= 1e-12


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_curve_of_the_text_config_is_the_same(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    given = [
        "configs/text.yaml",
        "precision=fp64",
        "log.every_steps=1",
        "duration.epochs=2",
        "evaluate.every_steps=10",
    ]
    given += [f"output_dir={tmp_path}", "wandb.mode=disabled"]
    assert run_ranks(1, start, [*given, "name=plain"]) == [0]

    assert (
        run_ranks(world_size, start, [*given, "name=ours", "batch.micro_tokens=400"])
        == [0] * world_size
    )

    for key, count in (
        ("train/loss", 26),
        ("train/grad_norm", 26),
        ("eval/loss", 3),
        ("eval/accuracy", 3),
    ):
        ours, plain = (
            [row[key] for row in rows(tmp_path, key, name)] for name in ("ours", "plain")
        )
        assert len(ours) == count
        assert ours == pytest.approx(plain, rel=1e-10), key
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("ours", "plain")]
    assert plans[0]["curve_hash"] == plans[1]["curve_hash"]
    assert max(row["batch/accumulation_steps"] for row in rows(tmp_path, name="ours")) > 1


def start(arguments: list[str], loop: str = "accumulate") -> int:
    return main(arguments, loop, compute_gradient)


def test_one_reduction_per_step_however_many_micro_steps(run_ranks: Any, tmp_path: Path) -> None:
    arguments = argv(tmp_path, *TEXTS, "batch.effective=12", f"batch.micro_tokens={LENGTH}")

    for trace, reductions, _ in run_ranks(2, counting, arguments):
        assert len({len(sizes) for sizes in trace.sizes}) > 1, (
            "the same number of micro-steps in every step"
        )
        assert reductions == dict.fromkeys(range(1, 5), 1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_run_is_the_one_that_did_not_stop(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    given = (*TEXTS, "checkpoint={resume: auto, every_steps: 3}", "duration={steps: 10}", ADAMW)
    given = (*given, "batch.micro_tokens=50")
    (tmp_path / "whole").mkdir()
    whole = run_ranks(world_size, segment, argv(tmp_path / "whole", *given), "accumulate")
    run_ranks(world_size, segment, argv(tmp_path, *given), "accumulate", 8)

    resumed = run_ranks(world_size, segment, argv(tmp_path, *given), "accumulate")

    for one, other in zip(resumed, whole, strict=True):
        assert list(one.ids) == [7, 8, 9, 10]
        assert one.ids == {k: ids for k, ids in other.ids.items() if k > 6}
        assert np.array_equal(one.weights, other.weights)
        assert np.array_equal(one.moments, other.moments)
    assert repeatable(tmp_path) == repeatable(tmp_path / "whole")


def test_resuming_with_another_division_is_allowed(run_ranks: Any, tmp_path: Path) -> None:
    given = (*TEXTS, "checkpoint={resume: auto, every_steps: 3}", "duration={steps: 10}", ADAMW)
    run_ranks(1, segment, argv(tmp_path, *given, "name=whole"), "accumulate")
    run_ranks(1, segment, argv(tmp_path, *given), "accumulate", 5)
    run_ranks(2, segment, argv(tmp_path, *given, "batch.micro_tokens=50"), "accumulate", 8)

    run_ranks(1, segment, argv(tmp_path, *given, "batch.micro_tokens=30"), "accumulate")

    found, whole = (rows(tmp_path, name=name) for name in ("run", "whole"))
    assert len(found) == len(whole) == 10
    for key in ("train/loss", "train/grad_norm", "progress/samples_seen"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in whole], rel=1e-10)


# What a micro-batch holds


@pytest.mark.parametrize(
    "options", [(), ("data.preload=false", "data.workers=0"), ("data.preload=false",)]
)
@pytest.mark.parametrize("ranks", [1, 3])
def test_micro_batches_are_cut_to_their_longest_text(
    tmp_path: Path, options: tuple[str, ...], ranks: int
) -> None:
    limit = 60
    train = sets_of(tmp_path, f"batch.micro_tokens={limit}", *options).train
    assert isinstance(train, ByLength)
    plan = make_plan(10, 2, None, world_size=ranks, dataset_size=37)
    data, seen, cut = words(37), [], 0

    for rank in range(ranks):
        for part in islice(train.shares(plan, 0, rank, Place(), None), 4):
            for batch, size in zip(batches(part), part.sizes, strict=True):
                inputs, ids = batch["inputs"], batch["sample_id"].tolist()
                assert len(inputs) == max(1, size), "a filler is one sample"
                assert inputs.numel() <= limit
                longest = max(min(LENGTH, len(data[i].encode())) for i in ids)
                assert inputs.shape[1] == max(1, longest)
                assert inputs.tolist() == [padded(data[i])[: inputs.shape[1]] for i in ids]
                assert all(column.is_contiguous() for column in batch.values())
                cut += inputs.shape[1] < LENGTH
                seen += ids[:size]

    assert sorted(seen) == [*range(37)]
    assert cut > 3


def test_of_an_empty_text_one_token_is_left(tmp_path: Path) -> None:
    train = sets_of(
        tmp_path, f"data.source={HERE}.full", "data.args.size=2", f"batch.micro_tokens={LENGTH}"
    ).train

    (part,) = islice(
        train.shares(make_plan(2, 1, None, world_size=1, dataset_size=2), 0, 0, Place(), None), 1
    )

    assert [tuple(batch["inputs"].shape) for batch in batches(part)] == [(1, LENGTH), (1, 1)]


def test_padding_is_that_of_a_saved_tokenizer(tmp_path: Path) -> None:
    train = sets_of(tmp_path, f"data.tokenizer={save_words(tmp_path / 'saved')}").train

    (part,) = islice(
        train.shares(make_plan(37, 9, None, world_size=1, dataset_size=37), 0, 0, Place(), None), 1
    )

    lengths = [2 + bool(text) for text in words(37)]  # [CLS], [SEP], and the word between them
    assert train.lengths.tolist() == lengths
    assert max(batch["inputs"].shape[1] for batch in batches(part)) == 3


def test_two_texts_of_a_sample_are_cut_alike(tmp_path: Path) -> None:
    config = load(
        argv(
            tmp_path,
            f"data={{source: {HERE}.pairs, max_length: {LENGTH}}}",
            "batch.micro_tokens=100",
        )
    )
    train = open_sets(config.config, ("inputs", "other", "labels")).train
    first, second = words(20), words(20)[::-1]

    (part,) = islice(
        train.shares(make_plan(20, 4, None, world_size=1, dataset_size=20), 0, 0, Place(), None), 1
    )

    for batch in batches(part):
        longest = max(
            min(LENGTH, max(len(first[i].encode()), len(second[i].encode())))
            for i in batch["sample_id"]
        )
        assert batch["inputs"].shape == batch["other"].shape == (len(batch["labels"]), longest)


def test_evaluation_counts_each_sample_once_and_gives_the_same(
    run_ranks: Any, tmp_path: Path
) -> None:
    given = (*TEXTS, "data.eval_fraction=0.4", "duration={steps: 2}")
    run_ranks(1, start, argv(tmp_path, *given, "name=plain"))

    run_ranks(2, start, argv(tmp_path, *given, f"batch.micro_tokens={LENGTH}"))

    (ours,), (plain,) = (rows(tmp_path, "eval/loss", name) for name in ("run", "plain"))
    assert ours["eval/samples"] == plain["eval/samples"] == 15
    assert ours["eval/loss"] == pytest.approx(plain["eval/loss"], rel=1e-12)
    evaluation = sets_of(tmp_path, "data.eval_fraction=0.4").evaluation[""]
    shapes = [batch["inputs"].shape for batch in evaluation.batches(np.arange(15), 1)]
    assert len({length for _, length in shapes}) > 3


# What is told


def test_the_plan_tells_what_is_known(tmp_path: Path) -> None:
    assert (
        start(
            argv(
                tmp_path,
                *TEXTS,
                "batch.micro_tokens=50",
                "noise_scale.every_steps=1",
                "duration.epochs=3",
            )
        )
        == 0
    )

    told = (tmp_path / "run" / "log.txt").read_text()
    micro_steps = [
        row["batch/accumulation_steps"]
        for row in rows(tmp_path)
        if row["batch/effective_size"] == 8
    ]
    assert (
        "batch     8 samples on 1 rank, by length: 2 to 4 micro-batches each, of at most 50 tokens"
        in told
    )
    assert 2 <= min(micro_steps) < max(micro_steps) <= 4
    assert "lengths   1 to 24 tokens, " in told
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (plan["micro_tokens"], plan["micro_steps"]) == (50, [2, 4])
    assert plan["derived"]["micro_batch"] is None
    assert plan["derived"]["accumulation_steps"] is None
    assert (
        "accumulation: whether it pays is unknown: the estimate needs micro-batches drawn at "
        "random, and batch.micro_tokens sorts them by length\n"
    ) in told
    assert not any(
        "batch/noise_scale" in row or "batch/break_even_accumulation_steps" in row
        for row in rows(tmp_path)
    )


def test_one_number_of_micro_steps_is_told_as_one(tmp_path: Path) -> None:
    assert start(argv(tmp_path, *TEXTS, f"batch.micro_tokens={8 * LENGTH}"), "standard") == 0

    assert "by length: 1 micro-batches each" in (tmp_path / "run" / "log.txt").read_text()
    derived = json.loads((tmp_path / "run" / "plan.json").read_text())["derived"]
    assert derived["accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("model", "data", "exact", "reason"),
    [
        ("text_conv, args: {outputs: 3}", "texts", "verified", "adds up"),
        (f"hf, args: {{num_labels: 3, from_config: {{{BERT}}}}}", "texts", "verified", "adds up"),
        (f"{HERE}.Attending", "full", "false", "changes with the padding"),
        (f"{HERE}.Mean", "texts", "false", "changes with the padding behind the texts"),
        (
            f"{HERE}.UntrainedMean",
            "texts",
            "false",
            "the gradient changes with the padding behind the texts",
        ),
        (
            f"{HERE}.OnlyInTraining, args: {{outputs: 3}}",
            "texts",
            "false",
            "in train mode the gradient of a batch",
        ),
    ],
    ids=["text_conv", "bert", "an empty text", "mean", "an untrained mean", "only in training"],
)
def test_a_model_that_sees_the_padding_is_found(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    data: str,
    exact: str,
    reason: str,
) -> None:
    given = (f"data={{source: {HERE}.{data}, max_length: {LENGTH}}}", f"model={{target: {model}}}")
    given = (*given, f"batch={{effective: 16, micro_tokens: {2 * LENGTH}}}", "duration={steps: 1}")

    assert start(argv(tmp_path, *given)) == 0

    derived = json.loads((tmp_path / "run" / "plan.json").read_text())["derived"]
    assert derived["exact"] == exact
    assert reason in derived["exact_reasons"]
    assert start(argv(tmp_path, *given, "batch.exact=required")) == (
        0 if exact == "verified" else 2
    )
    capsys.readouterr()
    code = verify(argv(tmp_path, *given))
    told = capsys.readouterr().out
    if data != "full":  # its first step holds no empty text
        assert code == (0 if exact == "verified" else 1)
        assert ("NOT EXACT" in told, reason in told) == (code == 1, code == 1)


@pytest.mark.parametrize(
    ("model", "found"),
    [("text_conv, args: {outputs: 3}", False), (f"{HERE}.HardlySeen, args: {{}}", True)],
)
def test_the_rounding_of_bf16_hides_no_padding(
    run_ranks: Any, tmp_path: Path, model: str, found: bool
) -> None:
    given = (
        TEXTS[0],
        f"model={{target: {model}}}",
        "precision=bf16",
        f"batch.micro_tokens={2 * LENGTH}",
    )

    # a process has one precision
    assert run_ranks(1, start, argv(tmp_path, *given, "duration={steps: 1}")) == [0]

    reasons = json.loads((tmp_path / "run" / "plan.json").read_text())["derived"]["exact_reasons"]
    assert "bf16 rounds each micro-batch" in reasons
    assert ("changes with the padding" in reasons) is found


def test_the_trial_leaves_the_model_as_accelerate_made_it() -> None:
    module = UntrainedMean()
    before = module.forward
    module._original_forward = before
    module.forward = wrapped = lambda tokens: before(tokens).bfloat16()
    tokens = torch.full((1, LENGTH), 97)

    with plain_forward(module):
        assert module(tokens).dtype == torch.float32

    assert module.forward is wrapped
    assert "_compiled_call_impl" not in vars(module)


@pytest.mark.parametrize("effective", [1, 16])
def test_verify_on_two_ranks(run_ranks: Any, tmp_path: Path, effective: int) -> None:
    given = (*TEXTS, f"batch.effective={effective}", "batch.micro_tokens=60")

    assert run_ranks(2, verify, argv(tmp_path, *given)) == [0, 0]


def test_verify_with_workers_reads_its_one_step_only(tmp_path: Path) -> None:
    """A worker asks for steps ahead, and the limit of verify fits the first one only."""
    read = (f"data.source={HERE}.short_first", "data.preload=false", "data.workers=1")

    assert (
        verify(argv(tmp_path, *TEXTS, "batch.effective=1", f"batch.micro_tokens={LENGTH}", *read))
        == 0
    )


def test_the_shortest_text_of_the_trial_is_one_that_counts(tmp_path: Path) -> None:
    sets = sets_of(tmp_path, f"data.source={HERE}.unlabelled")

    assert sets.trial(0, 4)["labels"][-1] != -100
    assert (
        start(
            argv(tmp_path, *TEXTS, f"data.source={HERE}.unlabelled", f"batch.micro_tokens={LENGTH}")
        )
        == 0
    )
    derived = json.loads((tmp_path / "run" / "plan.json").read_text())["derived"]
    assert derived["exact"] == "verified"


def test_to_evaluate_a_run_no_training_text_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = argv(
        tmp_path,
        *TEXTS,
        "data.eval_fraction=0.4",
        f"batch.micro_tokens={LENGTH}",
        "duration={steps: 1}",
    )
    assert start(given) == 0
    measured = []
    lengths = Padding.lengths
    monkeypatch.setattr(
        Padding,
        "lengths",
        lambda own, batch: measured.extend(batch["sample_id"]) or lengths(own, batch),
    )

    assert "loss" in evaluate(tmp_path / "run", [], trust=True)

    assert len(measured) == 15, "the held-out texts, once each"


# What is refused


@pytest.mark.parametrize("place", ["training", "held-out"])
def test_a_wrong_label_of_a_token_is_found_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    # the wrong one is in sample 0, which is held out with most
    fraction = 0.0 if place == "training" else 0.95
    data = (
        f"source: {HERE}.tagged, max_length: {LENGTH}, args: {{wrong: true}}, eval_fraction: "
        f"{fraction}"
    )
    given = (
        f"data={{{data}}}",
        f"model={{target: {HERE}.Tagger, args: {{}}}}",
        "batch.micro_tokens=60",
    )

    assert start(argv(tmp_path, *given)) == 2

    assert f"{place} samples: labels holds 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "loop", "said"),
    [
        ((f"data.source={HERE}.stream",), "accumulate", "a stream does not tell them"),
        (
            ("data.source=tests.helpers.tiny",),
            "accumulate",
            "none of the columns of the task holds text: inputs",
        ),
        (
            (f"data.source={HERE}.masked", f"task={{target: {HERE}.Asking, args: {{more: mask}}}}"),
            "accumulate",
            "'mask' holds 24 numbers for each, as many as data.max_length",
        ),
        (
            (f"model.target={HERE}.Flat",),
            "accumulate",
            "but not one that batch.micro_tokens cuts to its ",
        ),
        (
            (f"model.target={HERE}.Wide",),
            "accumulate",
            "Kernel size can't be greater than actual input",
        ),
        (
            (),
            "standard",
            "Type: batch.effective=8 batch.micro_tokens=192, or use the accumulation loop",
        ),
    ],
    ids=[
        "stream",
        "no text",
        "numbers that may belong to tokens",
        "one length",
        "a least length",
        "standard loop",
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    loop: str,
    said: str,
) -> None:
    assert start(argv(tmp_path, *TEXTS, f"batch.micro_tokens={LENGTH}", *overrides), loop) == 2

    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_fills_up_in_front_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_words(tmp_path / "saved")
    about = tmp_path / "saved" / "tokenizer_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"padding_side": "left"}))

    assert (
        start(argv(tmp_path, *TEXTS, f"data.tokenizer={folder}", f"batch.micro_tokens={LENGTH}"))
        == 2
    )

    told = capsys.readouterr().err
    assert "padding_side is left" in told
    assert "Set: batch.micro_tokens=null batch.micro=8" in told
