"""Any model of transformers, fed and asked as the tasks here do it. It needs the extra `hf`."""

import difflib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train.models import ModelError
from train.models._extras import library

TASKS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
}
"""Names of the hub, and the class of transformers that makes a model for each."""


class HF(nn.Module):
    """A transformers model from a folder or a name (`from_pretrained`), or drawn anew from the fields of its config
    (`from_config`, with its `model_type`). `changes` are fields of the config too, such as num_labels.

    ids of tokens (samples, T) -> logits
      sequence-classification  (samples, classes)         for task=classification
      token-classification     (samples, classes, T)      for task=classification, with a label for each token
      causal-lm                (samples, T, vocabulary)   for task=causal_lm
    The model's own loss is never asked for: of a text classifier it is the mean over a micro-batch.

    attention_mask: tokens that are the config's pad_token_id are not seen. None is masked where the config has no
    pad_token_id, and in a causal-lm, whose padding has to be on the right, where no earlier token sees it.

    Raises ModelError. Parameters are named as in transformers, below `inner`; saved ones exactly as there.
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
            raise ModelError("model.args takes one of from_pretrained, a folder or a name, and from_config: {...}")
        self.task = task
        self.inner: Any = _opened(TASKS[task], from_pretrained, from_config or {}, changes)
        self.inner.train()  # from_pretrained hands it over in eval mode, which would count as frozen here

    def forward(self, inputs: Tensor, documents: Tensor | None = None) -> Tensor:
        if documents is not None:
            raise ModelError("model.target=hf cannot keep documents apart. Type: task.args.document_mask=false")
        ids, padding = inputs.long(), self.inner.config.pad_token_id
        if self.task == "causal-lm":
            fed: dict[str, Any] = {"use_cache": False}  # keys and values that nobody asks for again
        else:
            fed = {} if padding is None else {"attention_mask": (ids != padding).long()}
        logits: Tensor = self.inner(input_ids=ids, **fed).logits
        return logits.transpose(1, 2) if self.task == "token-classification" else logits

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
        """The word of transformers up to 5; its new one goes first, since the old one warns."""
        old = self.inner.gradient_checkpointing_enable
        getattr(self.inner, "activation_checkpointing_enable", old)(gradient_checkpointing_kwargs)

    def save_pretrained(self, folder: Path) -> None:
        """Write what from_pretrained opens; the weights as one file, model.safetensors."""
        self.inner.save_pretrained(folder, max_shard_size=2**60)

    def load_pretrained(self, file: Path) -> None:
        """Read all weights back. Some models, those with experts, are saved under other names than they have at work,
        so transformers reads them. Raises ModelError where the file does not fit."""
        made, told = type(self.inner).from_pretrained(
            None,
            config=self.inner.config,
            state_dict=load_file(file),
            dtype=self.inner.dtype,
            ignore_mismatched_sizes=True,  # told with the others
            output_loading_info=True,
        )
        wrong = [f"{what}: {', '.join(sorted(map(str, names))[:4])}" for what, names in told.items() if names]
        if wrong:
            raise ModelError(f"{file} does not fit the model: {'; '.join(wrong)}")
        self.inner.load_state_dict(made.state_dict())


def _opened(auto: str, path: str | None, fields: dict[str, Any], changes: dict[str, Any]) -> Any:
    """In float32, from the run's random numbers where there are no weights."""
    transformers = _transformers()
    maker = getattr(transformers, auto)
    if path is None:
        return maker.from_config(_config(transformers.CONFIG_MAPPING, fields | changes), dtype=torch.float32)
    try:
        _check_fields(transformers.AutoConfig.from_pretrained(path), changes)
        model, told = maker.from_pretrained(
            path, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **changes
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.args.from_pretrained={path} cannot be opened: {error}\n"
            f"It takes a folder that save_pretrained has written, or a name of the hub"
        ) from error
    if told["mismatched_keys"]:
        names = ", ".join(sorted(str(key[0]) for key in told["mismatched_keys"]))
        raise ModelError(f"{path} has other shapes than model.args ask for: {names}. Leave num_labels as it is there")
    return model


def _transformers() -> Any:
    transformers = library("transformers", "hf", "hf")
    transformers.utils.logging.disable_progress_bar()  # a run has one of its own, and each rank would draw these
    return transformers


def _config(kinds: Any, fields: dict[str, Any]) -> Any:
    kind = str(fields.get("model_type"))
    if kind not in kinds:
        raise ModelError(
            f"model.args.from_config.model_type={kind} is no model of transformers{_near(kind, list(kinds.keys()))}"
        )
    given = {key: value for key, value in fields.items() if key != "model_type"}
    _check_fields(kinds[kind](), given)
    return kinds[kind](**given)


def _check_fields(config: Any, given: dict[str, Any]) -> None:
    """transformers takes a field that no model has without a word."""
    for key in given:
        if not hasattr(config, key):
            raise ModelError(
                f"model.args: {type(config).__name__} has no field {key!r}{_near(key, list(vars(config)))}"
            )


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
