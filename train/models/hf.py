"""Any model of transformers, called as the tasks here call a model. It needs the extra `hf`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from train.chunked_loss import Head, TokenLoss
from train.models import ModelError
from train.models.hf_head import find_finish
from train.models.hf_open import TASKS, add_decoder_start, open_model


class HF(nn.Module):
    """A transformers model.

    `from_pretrained`: a folder or a name. `from_config`: the fields of a config, with its
    `model_type`, for a model that is initialised from the seed. `changes`: more fields of the
    config, such as num_labels, and arguments of transformers, such as attn_implementation and
    quantization_config.

    ids of tokens (samples, T) -> logits
      sequence-classification  (samples, classes)         for task=classification
      token-classification     (samples, classes, T)      for task=classification, a label per token
      causal-lm                (samples, T, vocabulary)   for task=causal_lm
    The model's own loss is never used: of a text classifier it is the mean over a micro-batch.

    A mixture of experts whose config has output_router_logits gives (logits, router loss times its
    coefficient): for task=causal_lm with task.args.router_loss=true.

    attention_mask (samples, T): the tokens that are seen; the tokenizer's own where texts become
    tokens here. Without one, tokens that equal the config's pad_token_id are not seen. Nothing is
    masked where the config has no pad_token_id, nor in a causal-lm, whose padding has to be on the
    right: there no earlier token sees it.

    With `loss` (memory.chunked_loss), a causal-lm gives its sum in place of the logits.

    Raises ModelError. Parameters are named as in transformers, below `inner`; in saved weights
    exactly as there.
    """

    def __init__(
        self,
        task: str = "sequence-classification",
        from_pretrained: str | None = None,
        from_config: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise ModelError(f"model.args.task={task}: it takes {', '.join(TASKS)}")
        if (from_pretrained is None) == (from_config is None):
            raise ModelError(
                "model.args takes one of from_pretrained, a folder or a name, and from_config: "
                "{...}"
            )
        self.task = task
        self.inner: Any = open_model(task, from_pretrained, (from_config or {}) | changes)
        self.inner.train()  # from_pretrained gives it in eval mode
        add_decoder_start(self.inner.config)

    def forward(
        self,
        inputs: Tensor,
        documents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        loss: TokenLoss | None = None,
    ) -> Any:
        if documents is not None:
            raise ModelError(
                "model.target=hf cannot keep documents apart. Set: task.args.document_mask=false"
            )
        args = self._arguments(inputs.long(), attention_mask)
        if loss is not None:
            # The body without its head: the logits of all tokens are what memory.chunked_loss
            # avoids. What the model does to its logits afterwards is `_finish`.
            head = self.inner.get_output_embeddings()
            hidden = self.inner.base_model(**args).last_hidden_state
            return loss(hidden, Head(head.weight, head.bias, self._finish))
        outputs = self.inner(**args)
        # Classes come second, as cross_entropy takes them.
        if self.task == "token-classification":
            return outputs.logits.transpose(1, 2)
        # transformers adds it to its own loss, which is never used: left out, the loss of such a
        # model was 3.7005 in place of 4.707 (docs/edges.md).
        router_loss = getattr(outputs, "aux_loss", None)
        if isinstance(router_loss, Tensor):
            return outputs.logits, router_loss * _router_coefficient(self.inner.config)
        return outputs.logits

    def _arguments(self, ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        args: dict[str, Any] = {"input_ids": ids}
        padding = self.inner.config.pad_token_id
        if self.task == "causal-lm":
            args["use_cache"] = False  # keys and values, which only generation reads again
        elif attention_mask is None and padding is not None:
            attention_mask = ids != padding
        if attention_mask is not None:
            args["attention_mask"] = attention_mask.long()
        return args

    def find_head(self) -> None:
        """Called once, before a first `loss`. Raises NoChunks."""
        self._finish = find_finish(self.inner)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
        """The method's name up to transformers 5; where its new name exists, the old one warns."""
        enable = getattr(self.inner, "activation_checkpointing_enable", None)
        if enable is None:
            enable = self.inner.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs)

    def save_pretrained(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write what from_pretrained opens; the weights as one file, model.safetensors."""
        # Without `state` the model's own weights. The prefix is that of this wrapper.
        weights = None
        if state is not None:
            weights = {name.removeprefix("inner."): tensor for name, tensor in state.items()}
        # One file whatever its size: the rest of the project knows model.safetensors alone.
        self.inner.save_pretrained(folder, state_dict=weights, max_shard_size=2**60)

    def load_pretrained(self, file: Path) -> None:
        """Read all weights of a file. Raises ModelError where it does not fit.

        Through transformers, since some models, those with experts, have other parameter names in
        files than in memory.
        """
        loaded, loading_info = type(self.inner).from_pretrained(
            None,
            config=self.inner.config,
            state_dict=load_file(file),
            dtype=self.inner.dtype,
            ignore_mismatched_sizes=True,  # named below, with the missing ones
            output_loading_info=True,
        )
        # All of them at once: transformers gives names that are missing, unexpected or of another
        # shape, and leaves random numbers in their place.
        problems = []
        for kind, names in loading_info.items():
            if names:
                problems.append(f"{kind}: {', '.join(sorted(map(str, names))[:4])}")
        if problems:
            raise ModelError(f"{file} does not fit the model: {'; '.join(problems)}")
        self.inner.load_state_dict(loaded.state_dict())


def _router_coefficient(config: Any) -> float:
    for name in ("router_aux_loss_coef", "aux_loss_coef"):
        if hasattr(config, name):
            return float(getattr(config, name))
    raise ModelError(
        f"model.args.output_router_logits: {type(config).__name__} has no coefficient for it. "
        f"Set: model.args.output_router_logits=false"
    )
