"""What a transformers language model does between its body and its logits, tried on four tokens.

memory.chunked_loss applies the last layer itself, some tokens at a time. What stands before that
layer, and what is done to the logits after it, differs between models, and so do the names in their
configs: so the model is tried, and its config is not read.
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

FAR = 1e6  # a logit for which a soft cap has reached its limit


def capped(cap: float, logits: Tensor) -> Tensor:
    """A soft cap, as in Gemma 2."""
    return cap * torch.tanh(logits / cap)


def scaled(factor: float, logits: Tensor) -> Tensor:
    """A factor, as in Cohere and Granite."""
    return logits * factor


def find_finish(model: Any) -> Finish:
    """What the model does to the output of its last layer: nothing, a factor or a soft cap.

    Raises NoChunks where it is something else, where something stands between the model's body
    (`base_model`) and its last layer, or where that is no nn.Linear.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise _no_chunks(model, f"its last layer is {type(head).__name__}, not nn.Linear")
    # With `loss` a forward pass gives one sum: the router's loss would be left out of it silently.
    if getattr(model.config, "output_router_logits", False):
        raise _no_chunks(model, "it gives a router loss too (output_router_logits)")
    # Known numbers take the place of the last layer's output: what the model gives then is what it
    # does to its logits.
    logits = _trial_logits(head)
    entered: list[Tensor] = []

    def replace(_: nn.Module, args: tuple[Tensor], __: Tensor) -> Tensor:
        """In place of the output of the last layer."""
        entered.append(args[0])
        return logits.clone()

    # (2, 2): two texts of two tokens, all different unless the vocabulary has fewer than four.
    tokens = torch.arange(4, device=logits.device).view(2, 2) % head.out_features
    hook = head.register_forward_hook(replace)
    try:
        with preserve_state(model, logits.device), torch.no_grad():
            # In eval mode, since dropout would draw other masks in the second pass: the body's
            # output would not be what enters the last layer.
            model.eval()
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            finished = model(input_ids=tokens, use_cache=False).logits
    # whatever the code of an unknown model does with four tokens
    except Exception as error:
        raise _no_chunks(
            model, f"its body cannot be called separately ({type(error).__name__}: {error})"
        ) from error
    finally:
        hook.remove()
    # A projection or a factor between body and last layer would be left out by the loss in pieces:
    # a wrong loss, and no error.
    if len(entered) != 1 or not torch.equal(entered[0], hidden):
        raise _no_chunks(model, "what enters its last layer is not what its body gives")
    # A factor shows in what becomes of 1, a soft cap in what becomes of FAR.
    of_one, of_far = finished[0, 0, :2].tolist()
    rounding = 8 * torch.finfo(logits.dtype).eps
    # `unchanged` first: a factor of 1 would fit as well, and cost a multiplication of every logit.
    for finish in (unchanged, partial(scaled, of_one), partial(capped, of_far)):
        if torch.allclose(finish(logits), finished, rtol=rounding, atol=0):
            return finish
    raise _no_chunks(model, "it changes its logits by more than a factor or a soft cap")


def _trial_logits(head: nn.Linear) -> Tensor:
    """(2, 2, vocabulary): numbers from -100 to 100, the first two of them 1 and FAR."""
    logits = torch.linspace(-100, 100, 4 * head.out_features).view(2, 2, -1).to(head.weight.device)
    if head.weight.dtype == torch.float64:
        logits = logits.double()
    logits[0, 0, :2] = torch.tensor([1.0, FAR])
    return logits


def _no_chunks(model: Any, why: str) -> NoChunks:
    return NoChunks(
        f"memory.chunked_loss: the loss of {type(model).__name__} cannot be computed in pieces: "
        f"{why}. Set: memory.chunked_loss=false"
    )
