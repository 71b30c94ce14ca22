"""The rules for the batch: which numbers say the others, and what cannot be stated together."""

from collections.abc import Iterator

from train.config.problems import Finding, Values, show


def _micro(values: Values) -> Iterator[Finding]:
    micro = values["batch.micro"]
    if micro not in ("all", "auto") and not (isinstance(micro, int) and micro >= 1):
        unquoted = f". Write {micro} without quotes" if str(micro).isdigit() and int(micro) else ""
        yield "batch.micro", f"got {show(micro)}; it takes a whole number of 1 or more, all or auto{unquoted}"


def _auto(values: Values) -> Iterator[Finding]:
    steps = values["batch.accumulation_steps"]
    if values["batch.micro"] == "auto" and steps is not None:
        why = "the micro-batch that is found decides it. Leave one of them out"
        yield "batch.accumulation_steps", f"got {steps} beside batch.micro=auto; {why}"


def _batch(values: Values) -> Iterator[Finding]:
    """Two of three; `micro: all` is the default and says nothing by itself."""
    micro, steps = values["batch.micro"], values["batch.accumulation_steps"]
    stated = values["batch.effective"] is not None or values["batch.effective_tokens"] is not None
    if stated or (micro != "all" and steps is not None):
        return
    if values["batch.micro_tokens"] and (micro != "all" or steps is not None):
        return  # they exclude each other: which of them is meant is asked first
    got, other = "nothing", ""
    if steps is not None:
        got, other = f"batch.accumulation_steps={steps} alone", ", or batch.micro=..."
    elif micro != "all":
        got, other = f"batch.micro={micro} alone", ", or batch.accumulation_steps=..."
    why = "no effective batch follows from it. Add batch.effective=..., the samples per step over all ranks"
    yield "batch", f"got {got}; {why}{other}"


def _micro_tokens(values: Values) -> Iterator[Finding]:
    """Micro-batches by the lengths of texts, which must differ, and be known before the first step."""
    tokens, longest, block = (values[key] for key in ("batch.micro_tokens", "data.max_length", "data.block_size"))
    if not tokens or tokens < 0:
        return
    instead = f"Leave it out, and write batch.micro={max(1, tokens // (block or longest or tokens))}"
    keys = ("batch.micro", "batch.accumulation_steps")
    others = [f"{key}={values[key]}" for key in keys if values[key] not in (None, "all")]
    if others:
        yield "batch", f"got batch.micro_tokens={tokens} and {' and '.join(others)}; they exclude each other. Keep one"
    why = None
    if block is not None:
        why = f"blocks are all of data.block_size={block} tokens. {instead}"
    elif values["data.streaming"]:
        why = f"the lengths of a stream are not known before the first step. {instead}, or data.streaming=false"
    elif values["data.transform"] or values["data.eval_transform"]:
        why = f"a transform may change the length of a text, which must be known before the first step. {instead}"
    elif longest is None:
        why = "it counts the tokens of texts. Add data.max_length=..., or leave it out and write batch.micro=..."
    elif tokens < longest:
        why = f"a text of data.max_length={longest} tokens would not fit. Write batch.micro_tokens={longest} or more"
    if why:
        yield "batch.micro_tokens", f"got {tokens}; {why}"


BATCH_RULES = (_micro, _auto, _batch, _micro_tokens)
