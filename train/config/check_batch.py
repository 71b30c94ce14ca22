"""The rules for the batch: which numbers say the others, and what cannot be stated together."""

from collections.abc import Iterator
from typing import Any

from train.config.problems import Finding, Values, show

STATING = ("batch.effective", "batch.effective_tokens", "batch.schedule", "batch.schedule_tokens")
SCHEDULES = ("batch.schedule", "batch.schedule_tokens")
TO_ONE_SIZE = {"data.drop_tail": False, "data.overfit": None, "data.split_by_node": False}
"""{key that is about steps of one size: its value beside a schedule}."""


def _micro(values: Values) -> Iterator[Finding]:
    micro = values["batch.micro"]
    if micro in ("all", "auto") or _is_count(micro) or _are_counts(micro):
        return
    unquoted = f". Write {micro} without quotes" if str(micro).isdigit() and int(micro) else ""
    takes = "a whole number of 1 or more, a list of them, one a rank, all or auto"
    yield "batch.micro", f"got {show(micro)}; it takes {takes}{unquoted}"


def _shares(values: Values) -> Iterator[Finding]:
    shares, micro = values["batch.shares"], values["batch.micro"]
    if shares not in ("equal", "measured") and not _are_counts(shares):
        takes = "equal, measured, or a list of whole numbers, one a rank, as [3, 1]"
        yield "batch.shares", f"got {show(shares)}; it takes {takes}"
        return
    key = "batch.shares" if shares != "equal" else "batch.micro"
    if shares == "equal" and not isinstance(micro, list):
        return
    if all(values[other] is None for other in STATING):
        why = (
            "no effective batch follows from it. Add batch.effective=..., the samples per step "
            "over all ranks"
        )
        yield key, f"got {show(values[key])}; {why}"
    if values["data.split_by_node"]:
        why = (
            "with data.split_by_node each rank reads shards of its own. Write "
            "data.split_by_node=false"
        )
        yield key, f"got {show(values[key])}; {why}"
    if values["batch.micro_tokens"] is not None:
        why = "batch.micro_tokens deals texts by their tokens. Leave one of them out"
        yield key, f"got {show(values[key])}; {why}"
    if micro == "auto":
        why = (
            "batch.micro=auto finds one size for all ranks. Write a list of sizes, one a rank, "
            "or all"
        )
        yield "batch.micro", f"got auto beside batch.shares={show(shares)}; {why}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_count, value))


def _auto(values: Values) -> Iterator[Finding]:
    steps = values["batch.accumulation_steps"]
    if values["batch.micro"] == "auto" and steps is not None:
        why = "the micro-batch that is found decides it. Leave one of them out"
        yield "batch.accumulation_steps", f"got {steps} beside batch.micro=auto; {why}"


def _batch(values: Values) -> Iterator[Finding]:
    """Two of three; `micro: all` is the default and says nothing by itself."""
    micro, steps = values["batch.micro"], values["batch.accumulation_steps"]
    if any(values[key] is not None for key in STATING) or (micro != "all" and steps is not None):
        return
    if values["batch.micro_tokens"] and (micro != "all" or steps is not None):
        return  # they exclude each other: which of them is meant is asked first
    got, other = "nothing", ""
    if steps is not None:
        got, other = f"batch.accumulation_steps={steps} alone", ", or batch.micro=..."
    elif micro != "all":
        got, other = (
            f"batch.micro={micro} alone",
            ", or batch.accumulation_steps=..." if micro != "auto" else "",
        )
    why = (
        "no effective batch follows from it. Add batch.effective=..., the samples per step over "
        "all ranks"
    )
    yield "batch", f"got {got}; {why}{other}"


def _micro_tokens(values: Values) -> Iterator[Finding]:
    """Micro-batches by the lengths of texts, which must differ, and be known before the
    first step.
    """
    tokens, longest, block = (
        values[key] for key in ("batch.micro_tokens", "data.max_length", "data.block_size")
    )
    if not tokens or tokens < 0:
        return
    instead = (
        f"Leave it out, and write batch.micro={max(1, tokens // (block or longest or tokens))}"
    )
    keys = ("batch.micro", "batch.accumulation_steps")
    others = [f"{key}={values[key]}" for key in keys if values[key] not in (None, "all")]
    if others:
        yield (
            "batch",
            f"got batch.micro_tokens={tokens} and {' and '.join(others)}; they exclude each other. "
            "Keep one",
        )
    why = None
    if block is not None:
        why = f"blocks are all of data.block_size={block} tokens. {instead}"
    elif values["data.streaming"]:
        why = (
            f"the lengths of a stream are not known before the first step. {instead}, or "
            "data.streaming=false"
        )
    elif values["data.transform"] or values["data.eval_transform"]:
        why = (
            "a transform may change the length of a text, which must be known before the first "
            f"step. {instead}"
        )
    elif longest is None:
        why = (
            "it counts the tokens of texts. Add data.max_length=..., or leave it out and write "
            "batch.micro=..."
        )
    elif tokens < longest:
        why = (
            f"a text of data.max_length={longest} tokens would not fit. Write "
            f"batch.micro_tokens={longest} or more"
        )
    if why:
        yield "batch.micro_tokens", f"got {tokens}; {why}"


def _schedule(values: Values) -> Iterator[Finding]:
    for key in SCHEDULES:
        stages = values[key]
        if stages is None:
            continue
        if 0 not in stages:
            why = "its first stage begins at 0"
            yield key, f"got {show(stages)}; {why}. Add 0: the effective batch of the first steps"
        for start, effective in stages.items():
            if start < 0 or effective < 1:
                yield (
                    key,
                    f"got {start}: {effective}; a stage begins at 0 or more, and its batch is 1 or "
                    "more",
                )
        for other, neutral in TO_ONE_SIZE.items():
            if values[other] != neutral:
                yield (
                    other,
                    f"got {show(values[other])} beside {key}; it is about steps of one size. "
                    f"Write {other}={show(neutral)}, or batch.effective in place of the schedule",
                )


BATCH_RULES = (_micro, _auto, _shares, _batch, _micro_tokens, _schedule)
