"""Any model of transformers, fed and asked as the tasks here do it. It needs the extra `hf`."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train.chunked_loss import Head, TokenLoss
from train.models import ModelError
from train.models._extras import library
from train.models.hf_head import find_finish

TASKS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
}
"""Names of the hub, and the class of transformers that makes a model for each."""

FINDING = (
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "code_revision",
    "cache_dir",
    "local_files_only",
)
BUILDING = ("attn_implementation", "experts_implementation", "trust_remote_code")
LOADING = (
    *FINDING,
    *BUILDING,
    "quantization_config",
    "variant",
    "use_safetensors",
    "weights_only",
    "key_mapping",
)
"""Arguments of from_pretrained that are no fields of a config: where weights are found, and how a
model is built.
"""

REFUSED = {
    "dtype": "model.dtype=bf16, or leave it out: float32",
    "torch_dtype": "model.dtype=bf16, or leave it out: float32",
    "device_map": "NPROC=2, or leave it out: each rank has a device of its own",
    "max_memory": "model.dtype=bf16, or leave it out: each rank has a device of its own",
    "tp_plan": "NPROC=2, or leave it out: each rank holds the whole model",
}
"""Arguments of transformers that the run decides, and what to type in their place."""


class HF(nn.Module):
    """A transformers model from a folder or a name (`from_pretrained`), or drawn anew from the
    fields of its config (`from_config`, with its `model_type`). `changes` are fields of the config
    too, such as num_labels, and arguments of transformers, such as attn_implementation and
    quantization_config.

    ids of tokens (samples, T) -> logits
      sequence-classification  (samples, classes)         for task=classification
      token-classification     (samples, classes, T)      for task=classification, with a label for
      each token causal-lm                (samples, T, vocabulary)   for task=causal_lm
    The model's own loss is never asked for: of a text classifier it is the mean over a micro-batch.

    A mixture of experts whose config has output_router_logits gives (logits, router loss times its
    coefficient): for task=causal_lm with task.args.router_loss=true.

    attention_mask (samples, T): the tokens that are seen; the tokenizer's own where texts become
    tokens here. Without one, tokens that are the config's pad_token_id are not seen. None is masked
    then where the config has no pad_token_id, and in a causal-lm, whose padding has to be on the
    right, where no earlier token sees it.

    With `loss` (memory.chunked_loss), a causal-lm gives its sum in place of the logits.

    Raises ModelError. Parameters are named as in transformers, below `inner`; saved ones exactly as
    there.
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
        self.inner: Any = _opened(task, from_pretrained, (from_config or {}) | changes)
        self.inner.train()  # from_pretrained hands it over in eval mode
        _add_decoder_start(self.inner.config)

    def forward(
        self,
        inputs: Tensor,
        documents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        loss: TokenLoss | None = None,
    ) -> Any:
        if documents is not None:
            raise ModelError(
                "model.target=hf cannot keep documents apart. Type: task.args.document_mask=false"
            )
        ids, padding = inputs.long(), self.inner.config.pad_token_id
        fed: dict[str, Any] = {}
        if self.task == "causal-lm":
            fed["use_cache"] = False  # keys and values that nobody asks for again
        elif attention_mask is None and padding is not None:
            attention_mask = ids != padding
        if attention_mask is not None:
            fed["attention_mask"] = attention_mask.long()
        if loss is not None:
            head = self.inner.get_output_embeddings()
            hidden = self.inner.base_model(input_ids=ids, **fed).last_hidden_state
            return loss(hidden, Head(head.weight, head.bias, self._finish))
        outputs = self.inner(input_ids=ids, **fed)
        if self.task == "token-classification":
            return outputs.logits.transpose(1, 2)
        router_loss = getattr(outputs, "aux_loss", None)
        if isinstance(router_loss, Tensor):
            return outputs.logits, router_loss * _router_coefficient(self.inner.config)
        return outputs.logits

    def find_head(self) -> None:
        """Asked once, before a first `loss`. Raises NoChunks."""
        self._finish = find_finish(self.inner)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
        """The word of transformers up to 5; its new one goes first, since the old one warns."""
        old = self.inner.gradient_checkpointing_enable
        getattr(self.inner, "activation_checkpointing_enable", old)(gradient_checkpointing_kwargs)

    def save_pretrained(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write what from_pretrained opens; the weights as one file, model.safetensors."""
        own = None
        if state is not None:
            own = {name.removeprefix("inner."): tensor for name, tensor in state.items()}
        self.inner.save_pretrained(folder, state_dict=own, max_shard_size=2**60)

    def load_pretrained(self, file: Path) -> None:
        """Read all weights back. Some models, those with experts, are saved under other names than
        they have at work, so transformers reads them. Raises ModelError where the file does not
        fit.
        """
        made, told = type(self.inner).from_pretrained(
            None,
            config=self.inner.config,
            state_dict=load_file(file),
            dtype=self.inner.dtype,
            ignore_mismatched_sizes=True,  # told with the others
            output_loading_info=True,
        )
        wrong = [
            f"{what}: {', '.join(sorted(map(str, names))[:4])}"
            for what, names in told.items()
            if names
        ]
        if wrong:
            raise ModelError(f"{file} does not fit the model: {'; '.join(wrong)}")
        self.inner.load_state_dict(made.state_dict())


def _opened(task: str, path: str | None, given: dict[str, Any]) -> Any:
    """In float32, from the run's random numbers where there are no weights."""
    transformers = _transformers()
    maker = getattr(transformers, TASKS[task])
    passed, fields = _sorted_out(given)
    try:
        if path is None:
            config = _config(transformers.CONFIG_MAPPING, fields)
            _check_task(task, transformers, config)
            return maker.from_config(
                config, dtype=torch.float32, **_only(BUILDING, passed, "from_config")
            )
        # Where nothing is said, transformers asks on the terminal whether to run the code of a
        # folder.
        passed.setdefault("trust_remote_code", False)
        config = transformers.AutoConfig.from_pretrained(
            path, **{k: passed[k] for k in FINDING if k in passed}
        )
        _check_fields(config, fields)
        if not passed.get("trust_remote_code"):
            _check_task(task, transformers, config)
        model, told = maker.from_pretrained(
            path,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **passed,
            **fields,
        )
    except ModelError:
        raise
    # the last one: a library that a quantisation needs
    except (OSError, ValueError, ImportError) as error:
        what = "model.args.from_config" if path is None else f"model.args.from_pretrained={path}"
        takes = (
            ""
            if path is None
            else "\nIt takes a folder that save_pretrained has written, or a name of the hub"
        )
        raise ModelError(f"{what} cannot be opened: {error}{takes}") from error
    if told["mismatched_keys"]:
        names = ", ".join(sorted(str(key[0]) for key in told["mismatched_keys"]))
        raise ModelError(
            f"{path} has other shapes than model.args ask for: {names}. Leave num_labels as it is "
            "there"
        )
    return model


def _sorted_out(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of transformers, fields of a config)"""
    for name, instead in REFUSED.items():
        if name in given:
            raise ModelError(
                f"model.args.{name}={given[name]}: the run decides that. Set: {instead}"
            )
    passed = {name: value for name, value in given.items() if name in LOADING}
    return passed, {name: value for name, value in given.items() if name not in LOADING}


def _only(known: Sequence[str], passed: dict[str, Any], where: str) -> dict[str, Any]:
    other = [name for name in passed if name not in known]
    if other:
        raise ModelError(
            f"model.args.{other[0]} loads weights, and {where} has none. Set: "
            "model.args.from_pretrained"
        )
    return passed


def _check_task(task: str, transformers: Any, config: Any) -> None:
    """Not every model has every head: an encoder-decoder is no causal-lm."""
    if type(config) in getattr(transformers, TASKS[task])._model_mapping:
        return
    possible = [
        name
        for name, maker in TASKS.items()
        if type(config) in getattr(transformers, maker)._model_mapping
    ]
    instead = f"Set: model.args.task={possible[0]}" if possible else "Choose another model_type"
    able = (
        f"it makes {', '.join(possible)}"
        if possible
        else "nor any other model that this project feeds"
    )
    raise ModelError(
        f"model.args.task={task}: transformers makes none of {config.model_type}; {able}. {instead}"
    )


def _add_decoder_start(config: Any) -> None:
    """T5's config has lost what its decoder begins with, and its classifier asks for it
    (transformers 5.23).
    """
    if config.is_encoder_decoder and not hasattr(config, "decoder_start_token_id"):
        config.decoder_start_token_id = config.pad_token_id


def _router_coefficient(config: Any) -> float:
    for name in ("router_aux_loss_coef", "aux_loss_coef"):
        if hasattr(config, name):
            return float(getattr(config, name))
    raise ModelError(
        f"model.args.output_router_logits: {type(config).__name__} has no coefficient for it. "
        f"Set: model.args.output_router_logits=false"
    )


def _transformers() -> Any:
    transformers = library("transformers", "hf", "hf")
    # a run has one of its own, and each rank would draw these
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _config(kinds: Any, fields: dict[str, Any]) -> Any:
    kind = str(fields.get("model_type"))
    if kind not in kinds:
        raise ModelError(
            f"model.args.from_config.model_type={kind} is no model of "
            f"transformers{_near(kind, list(kinds.keys()))}"
        )
    given = {key: value for key, value in fields.items() if key != "model_type"}
    default = kinds[kind]()
    _add_decoder_start(default)
    _check_fields(default, given)
    return kinds[kind](**given)


def _check_fields(config: Any, given: dict[str, Any]) -> None:
    """transformers takes a field that no model has without a word."""
    for key in given:
        if not hasattr(config, key):
            raise ModelError(
                f"model.args: {type(config).__name__} has no field "
                f"{key!r}{_near(key, list(vars(config)))}"
            )


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
