"""Nobody's numbers are narrowed: what a model holds, what enters it, and what a task keeps for
itself.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss

from tests.helpers import argv, record, rows, steps, tiny
from train.batch.window import Batch
from train.config import load
from train.errors import UserError
from train.models.cast_arguments import cast_arguments
from train.models.precision import cast_parameters, notes_on_precision
from train.run import build
from train.tasks.classification import Classification
from train.tasks.regression import Regression

HERE = "tests.models.test_precision"
ONE_STEP = ("duration={steps: 1}", "batch={effective: 8, micro: 4}")
BF16 = ("precision=fp32", "model.dtype=bf16")


class Turning(nn.Module):
    """(samples, 6) -> (samples, 3): turns pairs of inputs by a complex table."""

    def __init__(self, complex_weights: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        table = torch.polar(torch.ones(3), torch.tensor([0.3, 1.1, 2.5]))
        if complex_weights:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def forward(self, inputs: Tensor) -> Tensor:
        assert self.table.is_complex()
        pairs = torch.view_as_complex(inputs.to(self.table.real.dtype).unflatten(1, (3, 2)))
        return self.layer(torch.view_as_real(pairs * self.table).flatten(1).to(inputs.dtype))


def first_loss(model: Turning) -> float:
    """Of step 1, in plain torch."""
    data = tiny().with_format("torch", dtype=model.layer.weight.dtype)[:]
    chosen = torch.from_numpy(steps(37, 8)[0].copy())
    return cross_entropy(model(data["inputs"][chosen]), data["labels"][chosen].long()).item()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp64", 1e-14)])
@pytest.mark.parametrize("complex_weights", [False, True])
def test_a_complex_table_stays_complex(
    tmp_path: Path, precision: str, tolerance: float, complex_weights: bool
) -> None:
    model = f"model={{target: {HERE}.Turning, args: {{complex_weights: {complex_weights}}}}}"
    torch.manual_seed(0)
    expected = Turning(complex_weights)
    if precision == "fp64":
        expected.layer.double()
        expected.table.data = expected.table.data.to(torch.complex128)

    record(argv(tmp_path, model, f"precision={precision}", *ONE_STEP))

    assert rows(tmp_path)[0]["train/loss"] == pytest.approx(first_loss(expected), rel=tolerance)


def dtypes_in(
    dtype: torch.dtype, module: nn.Module, construct: Any = None
) -> dict[str, torch.dtype]:
    cast_parameters(module, dtype, construct or type(module))
    return {name: t.dtype for name, t in (*module.named_parameters(), *module.named_buffers())}


class Every(nn.Module):
    """A buffer of each kind."""

    def __init__(self, needs_numbers: bool = False) -> None:
        super().__init__()
        if needs_numbers:
            # as a schedule of rates does; there are none on the meta device
            float(torch.zeros(1).sum())
        self.weight = nn.Parameter(torch.ones(2))
        self.wide = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.turns = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.norm = nn.BatchNorm1d(2)
        self.bare_norm = nn.BatchNorm1d(2, affine=False)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32))
        self.tables = nn.Module()
        self.tables.register_buffer(
            "frequencies", 1.0 / torch.arange(1, 3, dtype=torch.int64).float()
        )
        self.tables.register_buffer("default", torch.ones(2))
        self.tables.register_buffer("turns", torch.ones(2, dtype=torch.complex64))


def test_parameters_are_cast_and_buffers_follow_their_constructor() -> None:
    f32, f64, bf16, c64, c128 = (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
    )

    found = dtypes_in(bf16, Every())

    assert (found["weight"], found["wide"], found["norm.weight"]) == (bf16, bf16, bf16)
    assert (found["mean"], found["norm.running_mean"], found["bare_norm.running_var"]) == (
        bf16,
        bf16,
        bf16,
    )
    assert (found["tables.default"], found["tables.frequencies"]) == (bf16, f32)
    assert (found["turns"], found["tables.turns"]) == (c64, c64)
    assert (found["count"], found["norm.num_batches_tracked"]) == (torch.int32, torch.int64)
    wide = dtypes_in(f64, Every())
    assert {dtype for dtype in wide.values() if dtype.is_floating_point} == {f64}
    assert (wide["turns"], wide["tables.turns"], wide["count"]) == (c128, c128, torch.int32)
    same = dtypes_in(f32, Every())
    assert (same["weight"], same["wide"], same["turns"], same["mean"]) == (f32, f64, c64, f32)
    assert dtypes_in(f32, nn.Linear(2, 2).half())["weight"] == f32


def test_where_a_constructor_cannot_be_asked_a_table_stays() -> None:
    model = Every(needs_numbers=True)

    found = dtypes_in(torch.bfloat16, model, lambda: Every(needs_numbers=True))

    assert (found["mean"], found["norm.running_mean"], found["bare_norm.running_var"]) == (
        torch.bfloat16,
    ) * 3
    assert (found["tables.frequencies"], found["tables.default"]) == (torch.float32, torch.float32)
    (note,) = notes_on_precision(model, torch.bfloat16)
    assert note.endswith("tables.frequencies, tables.default")


def test_a_cast_leaves_no_trace_in_generators_ties_and_gradients() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    model = nn.Sequential(layer, nn.Linear(2, 2), Every())
    model[1].weight = layer.weight
    before = torch.get_rng_state()

    cast_parameters(model, torch.bfloat16, lambda: nn.Sequential(nn.Dropout(), Every()))

    assert torch.equal(torch.get_rng_state(), before)
    assert model[1].weight is layer.weight
    assert layer.weight.grad.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DEEPSEEK = {
    **GROUPED,
    "n_routed_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 8,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 0,
}


@pytest.mark.parametrize(
    ("kind", "fields", "in_float32"),
    [
        ("llama", GROUPED, 2),
        (
            "gpt2",
            {
                "n_embd": 16,
                "n_layer": 1,
                "n_head": 2,
                "vocab_size": 64,
                "bos_token_id": 1,
                "eos_token_id": 1,
            },
            0,
        ),
        ("bert", SIZES, 0),
        ("t5", T5, 0),
        ("mixtral", GROUPED | {"num_local_experts": 2}, 2),
        ("qwen3_moe", GROUPED | EXPERTS | {"head_dim": 8}, 2),
        ("gemma3_text", GROUPED | {"head_dim": 8}, 2),
        ("mamba2", {**SIZES, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}, 0),
        ("deepseek_v3", DEEPSEEK, 3),
    ],
)
def test_a_model_of_transformers_is_what_from_pretrained_gives(
    kind: str, fields: dict[str, Any], in_float32: int
) -> None:
    """In a wrapper of the user's own, with a table of its own beside it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **fields)
    inner = transformers.AutoModel.from_config(config, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        inner.save_pretrained(folder)
        theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16)

    wrapper = nn.ModuleDict({"inner": inner, "every": Every()})
    cast_parameters(wrapper, torch.bfloat16, lambda: nn.ModuleDict({"every": Every()}))

    ours = dict(inner.named_parameters()) | dict(inner.named_buffers())
    expected = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    assert sum(tensor.dtype == torch.float32 for tensor in ours.values()) == in_float32
    assert wrapper["every"].tables.frequencies.dtype == torch.float32


@dataclass(frozen=True)
class Boxed:
    value: Tensor
    name: str = "box"


class Pair(NamedTuple):
    first: Tensor
    second: int


class Echo(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def arguments_after_cast(dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    module = Echo()
    cast_arguments(module, dtype)
    return module(*args, **kwargs)


def test_floating_arguments_are_cast_wherever_they_are() -> None:
    x, ids = torch.tensor([1.0, 0.1]), torch.tensor([300])
    nested = {
        "list": [x, ids],
        "pair": Pair(x, 3),
        "box": Boxed(x),
        "text": "as it is",
        "none": None,
    }

    (given, nested_cast), options = arguments_after_cast(
        torch.bfloat16, ids, nested, x=x, mask=x > 0.5
    )

    assert given is ids
    assert nested_cast["list"][1] is ids
    assert (
        nested_cast["text"],
        nested_cast["none"],
        nested_cast["pair"].second,
        nested_cast["box"].name,
    ) == (
        "as it is",
        None,
        3,
        "box",
    )
    for cast in (
        nested_cast["list"][0],
        nested_cast["pair"].first,
        nested_cast["box"].value,
        options["x"],
    ):
        assert torch.equal(cast, x.bfloat16())
        assert cast.dtype == torch.bfloat16
    assert options["mask"].dtype == torch.bool
    assert nested["list"][0] is x


def test_finite_arguments_stay_finite() -> None:
    largest, inf, nan = torch.finfo(torch.float32).max, math.inf, math.nan

    (narrow,), _ = arguments_after_cast(
        torch.bfloat16, torch.tensor([largest, -largest, inf, -inf, nan, 1.0])
    )
    (single,), _ = arguments_after_cast(
        torch.float32, torch.tensor([1e300, 0.1], dtype=torch.float64)
    )

    limit = torch.finfo(torch.bfloat16).max
    assert narrow[:4].tolist() == [limit, -limit, inf, -inf]
    assert narrow[4].isnan()
    assert single.tolist() == [largest, float(np.float32(0.1))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arguments_that_fit_are_handed_over_as_they_are(dtype: torch.dtype) -> None:
    x, ids = torch.ones(2, dtype=dtype), torch.tensor([1])
    box = {"x": [x], "ids": (ids,)}

    (first, second), options = arguments_after_cast(dtype, x, ids, box=box)

    assert first is x
    assert second is ids
    assert options["box"] is box


def measurements(size: int = 32, weight: float = 1.0) -> Dataset:
    """Sixteen distinct targets near 2,000, in float64 as Python has them, and a weight for each
    sample.
    """
    random = np.random.default_rng(0)
    inputs = random.normal(size=(size, 6))
    targets = 2000 + 0.125 * random.permutation(np.arange(size) % 16)
    return Dataset.from_dict(
        {"inputs": inputs, "targets": targets[:, None], "importance": np.full(size, weight)}
    )


class Watching(nn.Linear):
    """Takes the types that its weights have, and nothing else."""

    def __init__(self, zero: bool = False) -> None:
        super().__init__(6, 1)
        if zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.dtype == self.weight.dtype
        return super().forward(inputs)


class Weighted(Regression):
    """Notes what a task is given."""

    columns = ("inputs", "targets", "importance")
    counted: ClassVar[list[Batch]] = []
    trained: ClassVar[list[Batch]] = []

    def loss_weight(self, batch: Batch) -> float:
        Weighted.counted.append(batch)
        return float(batch["importance"].sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        Weighted.trained.append(batch)
        errors = self._errors(model, batch)
        return (batch["importance"] * errors.square().squeeze(1)).sum()


def weighted(folder: Path, size: int, weight: float, *overrides: str) -> list[str]:
    data = (
        f"data={{source: {HERE}.measurements, args: {{size: {size}, weight: {weight}}}, "
        "eval_fraction: 0.25}"
    )
    model = f"model={{target: {HERE}.Watching, args: {{}}}}"
    return argv(folder, data, model, f"task={HERE}.Weighted", "optimizer.lr=1e-30", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        BF16,
        (*BF16, "model.compile=aot_eager"),
        ("precision=fp32", "ema.decay=0.5"),
        ("precision=fp32", "memory.activation_checkpointing=true", f"model.target={HERE}.InBlocks"),
        ("precision=fp64",),
    ],
    ids=["bf16", "compiled", "averaged", "checkpointed", "fp64"],
)
def test_a_task_keeps_what_the_data_holds(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    check_what_a_task_is_given(weighted(tmp_path, 32, 1.0, *overrides))

    assert "eval/mse" in rows(tmp_path, "eval/loss")[-1]


def test_a_task_keeps_what_the_data_holds_under_autocast(run_ranks: Any, tmp_path: Path) -> None:
    run_ranks(2, check_what_a_task_is_given, weighted(tmp_path, 32, 1.0, "precision=bf16"))


def check_what_a_task_is_given(arguments: list[str]) -> None:
    Weighted.counted.clear()
    Weighted.trained.clear()
    record([*arguments, "duration={steps: 1}", "batch={effective: 24, micro: 8}"])
    for batch in (*Weighted.counted, *Weighted.trained):
        assert batch["targets"].dtype == batch["importance"].dtype == torch.float64
    trained = torch.cat([batch["targets"] for batch in Weighted.trained]).flatten().tolist()
    assert 6 < len(set(trained)) == len({*trained} & {2000 + 0.125 * i for i in range(16)})


class InBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Watching()])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.blocks[0](inputs)


def test_r2_is_that_of_the_targets_as_they_are(tmp_path: Path) -> None:
    """The model answers 0: r2 = 1 - mean of squares / variance. Rounded to bf16, three targets are
    left.
    """
    data = f"data={{source: {HERE}.measurements, args: {{}}, eval_split: train}}"
    model = f"model={{target: {HERE}.Watching, args: {{zero: true}}}}"

    record(argv(tmp_path, data, model, "task=regression", *BF16, *ONE_STEP, "optimizer.lr=1e-30"))

    targets = np.array(measurements()["targets"])
    expected = 1 - np.mean(targets**2) / np.var(targets)
    assert rows(tmp_path, "eval/r2")[-1]["eval/r2"] == pytest.approx(expected, rel=1e-6)


class Huber(Regression):
    """torch takes two types here, and cannot go back through them."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return huber_loss(model(batch["inputs"]), batch["targets"], reduction="sum")


def test_a_loss_between_two_types_is_named(tmp_path: Path) -> None:
    data = f"data={{source: {HERE}.measurements, args: {{}}}}"
    model = f"model={{target: {HERE}.Watching, args: {{}}}}"

    with pytest.raises(
        UserError, match=r"targets float64\). Write in the task: target\.to\(output\.dtype\)"
    ):
        build(
            load(argv(tmp_path, data, model, f"task={HERE}.Huber", "precision=fp32")), "accumulate"
        )


def window_weights(arguments: list[str]) -> list[float]:
    trace = record(arguments)
    return [window.weights["loss"] for window in trace.windows]


def test_weights_are_counted_before_any_cast(run_ranks: Any, tmp_path: Path) -> None:
    """301 is 300 in bf16."""
    given = weighted(
        tmp_path, 9, 43.0, *BF16, "data.eval_fraction=0", "batch.effective=7", "duration={steps: 1}"
    )

    assert window_weights(given) == [301.0]
    assert run_ranks(2, window_weights, given) == [[301.0], [301.0]]


class Wide(Classification):
    """Counts in the type that it is given."""

    columns = ("inputs", "labels", "importance")
    seen: ClassVar[list[torch.dtype]] = []

    def loss_weight(self, batch: Batch) -> float:
        Wide.seen.append(batch["importance"].dtype)
        return super().loss_weight(batch)


def singles(size: int = 16) -> Dataset:
    return tiny(size).add_column("importance", np.ones(size, np.float32))


def test_in_float64_too_weights_are_counted_as_the_data_holds_them(tmp_path: Path) -> None:
    Wide.seen.clear()

    record(
        argv(
            tmp_path, f"data={{source: {HERE}.singles, args: {{}}}}", f"task={HERE}.Wide", *ONE_STEP
        )
    )

    assert set(Wide.seen) == {torch.float32}
