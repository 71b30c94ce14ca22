"""What a language model of transformers does between its body and its logits, found out by two
tokens.

memory.chunked_loss applies the last layer itself, some tokens at a time. What stands before it, and
what is done to the logits after it, differs between models, and so do its names in their configs:
the model is asked, and not its config.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.chunked_loss import NoChunks
from train.models.preserve_state import preserve_state
from train.parts import unchanged

Finish = Callable[[Tensor], Tensor]

FAR = 1e6  # where a soft cap has reached its limit


def capped(cap: float, logits: Tensor) -> Tensor:
    """As Gemma 2 does."""
    return cap * torch.tanh(logits / cap)


def scaled(factor: float, logits: Tensor) -> Tensor:
    """As Cohere and Granite do."""
    return logits * factor


def find_finish(model: Any) -> Finish:
    """What the model makes of what its last layer gives: nothing, a factor or a soft cap. Raises
    NoChunks.

    Also where something stands between its body (`base_model`) and its last layer, or that one is
    no nn.Linear.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise _refusal(model, f"its last layer is {type(head).__name__}, not nn.Linear")
    if getattr(model.config, "output_router_logits", False):
        raise _refusal(model, "it gives a router loss too (output_router_logits)")
    logits = torch.linspace(-100, 100, 4 * head.out_features).view(2, 2, -1).to(head.weight.device)
    if head.weight.dtype == torch.float64:
        logits = logits.double()
    logits[0, 0, :2] = torch.tensor([1.0, FAR])
    entered: list[Tensor] = []

    def replace(_: nn.Module, args: tuple[Tensor], __: Tensor) -> Tensor:
        entered.append(args[0])
        return logits.clone()

    tokens = torch.arange(4, device=logits.device).view(2, 2) % head.out_features
    watch = head.register_forward_hook(replace)
    try:
        with preserve_state(model, logits.device), torch.no_grad():
            model.eval()
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            finished = model(input_ids=tokens, use_cache=False).logits
    # whatever the code of a model of somebody else's does with two tokens
    except Exception as error:
        raise _refusal(
            model, f"its body cannot be asked apart from it ({type(error).__name__}: {error})"
        ) from error
    finally:
        watch.remove()
    if len(entered) != 1 or not torch.equal(entered[0], hidden):
        raise _refusal(model, "what enters its last layer is not what its body gives")
    one, far = finished[0, 0, :2].tolist()
    rounding = 8 * torch.finfo(logits.dtype).eps
    for finish in (unchanged, partial(scaled, one), partial(capped, far)):
        if torch.allclose(finish(logits), finished, rtol=rounding, atol=0):
            return finish
    raise _refusal(model, "it changes its logits by more than a factor or a soft cap")


def _refusal(model: Any, why: str) -> NoChunks:
    return NoChunks(
        f"memory.chunked_loss: the loss of {type(model).__name__} cannot be computed in pieces: "
        f"{why}. Set: memory.chunked_loss=false"
    )
