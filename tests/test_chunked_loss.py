"""memory.chunked_loss: the gradient of plain PyTorch, with a part of its memory; what cannot have
it is refused.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers import argv, distance, flat, record_all, rows
from tests.live_bytes import LiveBytes
from tests.test_language_model import LM
from train.accumulate import compute_gradient
from train.chunked_loss import Head, NoChunks, TokenLoss, chunk_loss
from train.main import main
from train.models._extras import fix_torchvision
from train.models.gpt import GPT
from train.models.hf import HF
from train.tasks.causal_lm import CausalLM

fix_torchvision()  # before anything of transformers is
VOCABULARY = 97
TINY = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32}
TINY |= {"num_hidden_layers": 1, "num_attention_heads": 2}


def texts(samples: int = 3, length: int = 7, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Tokens, and labels of which some count nowhere: all of the first sample's."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(0, vocabulary, (2, samples, length), generator=generator)
    labels[0] = labels[1:, ::3] = -100
    return tokens, labels


def gradient(model: nn.Module, loss: Tensor) -> Any:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return flat([g.double() for g in torch.autograd.grad(loss, parameters)])


def plain_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.sum() if weights is None else (each * weights.flatten()).sum()


class Biased(nn.Module):
    """A user's own, whose last layer has a bias and is capped."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.last = nn.Linear(8, VOCABULARY)

    def forward(self, tokens: Tensor, loss: TokenLoss | None = None) -> Tensor:
        hidden = self.embedding(tokens).cumsum(1)
        if loss is not None:
            return loss(hidden, Head(self.last.weight, self.last.bias, torch.tanh))
        return self.last(hidden).tanh()


@pytest.mark.parametrize(
    "make", [lambda: GPT(VOCABULARY, layers=1, heads=2, width=16), Biased], ids=["tied", "biased"]
)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_gradient_is_that_of_all_logits_at_once(
    make: Any, chunk: int, is_weighted: bool
) -> None:
    model = make().double()
    tokens, labels = texts()
    weights = torch.linspace(0, 2, labels.numel()).view_as(labels) if is_weighted else None
    expected = plain_loss(model(tokens), labels, None if weights is None else weights.double())

    loss = model(tokens, loss=TokenLoss(labels, chunk, weights))

    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    assert distance(gradient(model, loss * 1024) / 1024, gradient(model, expected)) <= 1e-14


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 parameters"]
)
def test_many_pieces_lose_no_more_than_one(dtype: torch.dtype) -> None:
    """Their parts of the weight's gradient would else be added up in bf16: 1.4 to 1.5 of the error
    with 64 pieces.
    """
    torch.manual_seed(0)
    model = GPT(512, layers=1, heads=2, width=32).to(dtype)
    exact = GPT(512, layers=1, heads=2, width=32).double()
    exact.load_state_dict(model.state_dict())
    tokens, labels = texts(8, 128, 512)
    expected = gradient(exact, plain_loss(exact(tokens), labels))

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        plain = plain_loss(model(tokens).float(), labels)
        pieces = model(tokens, loss=TokenLoss(labels, 16))

    errors = [distance(gradient(model, loss), expected) for loss in (pieces, plain)]
    assert pieces.dtype == torch.float32
    assert errors[0] <= 1.1 * errors[1]


def test_memory_follows_the_piece() -> None:
    """8 MiB of logits in float32, and their gradient; pieces of 1/16."""
    model = GPT(4096, layers=1, heads=2, width=16)
    tokens, labels = texts(4, 128, 4096)
    peaks = []
    for ask in (
        lambda: plain_loss(model(tokens), labels),
        lambda: model(tokens, loss=TokenLoss(labels, 32)),
    ):
        with LiveBytes() as live:
            ask().backward()
        peaks.append(live.peak / 2**20)

    assert peaks[0] > 2 * 8
    assert peaks[1] < 4


KINDS = {
    "llama": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5, "num_key_value_heads": 2},
    "cohere": {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 6.0},
    "phi": {"num_key_value_heads": 2},  # with a bias
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_transformers_give_the_gradient_of_their_own_logits(kind: str) -> None:
    torch.manual_seed(0)
    model = HF("causal-lm", from_config={"model_type": kind, **TINY, **KINDS[kind]}).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    tokens, labels = texts()
    task = CausalLM()

    chunk_loss(model, task, 5)
    expected = plain_loss(model.inner(input_ids=tokens, use_cache=False).logits, labels)
    loss = task.loss_sum(model, {"inputs": tokens, "labels": labels})

    assert isinstance(loss, Tensor)
    assert distance(gradient(model, loss), gradient(model, expected)) <= 1e-12


def test_a_run_is_the_same(run_ranks: Any, tmp_path: Path) -> None:
    given = (*LM, "batch={effective: 5, micro: 2}", "duration={steps: 3}", "evaluate.every_steps=2")
    pieces = "memory={chunked_loss: 5, activation_checkpointing: true}"
    several = [argv(tmp_path, *given, "name=plain"), argv(tmp_path, *given, "name=pieces", pieces)]

    for plain, ours in run_ranks(2, record_all, several):
        assert all(distance(ours.gradients[k], plain.gradients[k]) <= 1e-12 for k in (1, 2, 3))

    expected, evaluated = (
        [row["eval/loss"] for row in rows(tmp_path, "eval/loss", n)] for n in ("plain", "pieces")
    )
    assert evaluated == pytest.approx(expected, rel=1e-12)


class Own(CausalLM):
    def loss_sum(self, model: Any, batch: Any) -> Tensor:
        return model(batch["inputs"]).sum()


class OwnInPieces(CausalLM):
    chunk = None

    def loss_sum(self, model: Any, batch: Any) -> Tensor:
        return model(batch["inputs"], loss=TokenLoss(batch["labels"], self.chunk))


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (Biased(), object(), "object has no loss of tokens to cut; task=causal_lm has"),
        (Biased(), Own(), "Own defines its own loss_sum"),
        (nn.Linear(2, 2), CausalLM(), "Linear.forward takes no `loss`"),
        ("bert is_decoder", CausalLM(), "what enters its last layer is not what its body gives"),
        ("minicpm3", CausalLM(), "what enters its last layer is not what its body gives"),
        ("mixtral output_router_logits", CausalLM(), "it gives a router loss too"),
    ],
)
def test_what_cannot_be_cut_is_refused(model: Any, task: Any, message: str) -> None:
    if isinstance(model, str):
        kind, *flags = model.split()
        model = HF(
            "causal-lm", from_config={"model_type": kind, **TINY} | dict.fromkeys(flags, True)
        )

    with pytest.raises(NoChunks) as refused:
        chunk_loss(model, task, True)

    assert message in str(refused.value)
    assert "Set: memory.chunked_loss=false" in str(refused.value)


def test_a_task_that_cuts_its_own_loss_is_taken_at_its_word() -> None:
    task = OwnInPieces()

    chunk_loss(Biased(), task, True)

    assert task.chunk == 1024


def test_a_refusal_ends_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv(tmp_path, "memory.chunked_loss=true"), "accumulate", compute_gradient) == 2

    assert (
        "memory.chunked_loss: Classification has no loss of tokens to cut"
        in capsys.readouterr().err
    )
    assert main(argv(tmp_path, "memory.chunked_loss=-1"), "accumulate", compute_gradient) == 2
    assert "memory.chunked_loss" in capsys.readouterr().err
