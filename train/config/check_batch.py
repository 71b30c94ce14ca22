"""The rules for the batch: which numbers determine the others, and what excludes each other."""

from collections.abc import Iterator
from typing import Any

from train.config.problems import Finding, Values, show

STATING = ("batch.effective", "batch.effective_tokens", "batch.schedule", "batch.schedule_tokens")
"""Each of these states the effective batch."""
SCHEDULES = ("batch.schedule", "batch.schedule_tokens")
FOR_ONE_SIZE = {"data.drop_tail": False, "data.overfit": None, "data.split_by_node": False}
"""{key that only makes sense where all steps have one size: its value beside a schedule}."""

_NO_EFFECTIVE_BATCH = (
    "no effective batch follows from it. Add batch.effective=..., the samples per step over all "
    "ranks"
)


def _micro(values: Values) -> Iterator[Finding]:
    micro = values["batch.micro"]
    if micro in ("all", "auto") or _is_count(micro) or _are_counts(micro):
        return
    takes = "a whole number of 1 or more, a list of them, one a rank, all or auto"
    # In quotes it is text, and the quotes are the mistake.
    is_quoted_number = str(micro).isdigit() and int(micro) > 0
    fix = f". Write {micro} without quotes" if is_quoted_number else ""
    yield "batch.micro", f"got {show(micro)}; it takes {takes}{fix}"


def _shares(values: Values) -> Iterator[Finding]:
    shares = values["batch.shares"]
    micro = values["batch.micro"]
    if shares not in ("equal", "measured") and not _are_counts(shares):
        takes = "equal, measured, or a list of whole numbers, one a rank, as [3, 1]"
        yield "batch.shares", f"got {show(shares)}; it takes {takes}"
        return
    # Ranks are unequal by their shares, or by the sizes of their micro-batches.
    if shares != "equal":
        key = "batch.shares"
    elif isinstance(micro, list):
        key = "batch.micro"
    else:
        return
    got = f"got {show(values[key])}"
    # micro times accumulation steps is a size only where all ranks take the same.
    if all(values[other] is None for other in STATING):
        yield key, f"{got}; {_NO_EFFECTIVE_BATCH}"
    if values["data.split_by_node"]:
        why = "with data.split_by_node each rank reads separate shards"
        yield key, f"{got}; {why}. Write data.split_by_node=false"
    if values["batch.micro_tokens"] is not None:
        why = "batch.micro_tokens deals texts by their tokens"
        yield key, f"{got}; {why}. Leave one of them out"
    if micro == "auto":
        why = "batch.micro=auto finds one size for all ranks"
        fix = "Write a list of sizes, one a rank, or all"
        yield "batch.micro", f"got auto beside batch.shares={show(shares)}; {why}. {fix}"


def _is_count(value: Any) -> bool:
    # bool is an int in Python: `true` would be 1.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_count, value))


def _auto(values: Values) -> Iterator[Finding]:
    steps = values["batch.accumulation_steps"]
    if values["batch.micro"] == "auto" and steps is not None:
        why = "it follows from the micro-batch that the search chooses. Leave one of them out"
        yield "batch.accumulation_steps", f"got {steps} beside batch.micro=auto; {why}"


def _two_of_three(values: Values) -> Iterator[Finding]:
    """The effective batch, or what it follows from. `micro: all`, the default, states nothing."""
    micro = values["batch.micro"]
    steps = values["batch.accumulation_steps"]
    states_micro = micro != "all"
    states_steps = steps is not None
    if any(values[key] is not None for key in STATING) or (states_micro and states_steps):
        return
    if values["batch.micro_tokens"] and (states_micro or states_steps):
        return  # These exclude each other, which _micro_tokens reports first.
    # One number of two: name what is missing beside it.
    if states_steps:
        got = f"batch.accumulation_steps={steps} alone"
        alternative = ", or batch.micro=..."
    elif states_micro:
        got = f"batch.micro={micro} alone"
        alternative = "" if micro == "auto" else ", or batch.accumulation_steps=..."
    else:
        got = "nothing"
        alternative = ""
    yield "batch", f"got {got}; {_NO_EFFECTIVE_BATCH}{alternative}"


def _micro_tokens(values: Values) -> Iterator[Finding]:
    """Micro-batches by the lengths of texts: these must differ, and be known before step 1."""
    tokens = values["batch.micro_tokens"]
    if not tokens or tokens < 0:
        return
    keys = ("batch.micro", "batch.accumulation_steps")
    others = [f"{key}={values[key]}" for key in keys if values[key] not in (None, "all")]
    if others:
        got = f"got batch.micro_tokens={tokens} and {' and '.join(others)}"
        yield "batch", f"{got}; they exclude each other. Keep one"
    why = _why_not_by_length(values, tokens)
    if why:
        yield "batch.micro_tokens", f"got {tokens}; {why}"


def _why_not_by_length(values: Values, tokens: int) -> str:
    """Why texts cannot be grouped by length, and what to write instead; empty where they can."""
    longest = values["data.max_length"]
    block = values["data.block_size"]
    # As many samples as have room where all are of the largest size: the nearest number to type.
    samples = max(1, tokens // (block or longest or tokens))
    instead = f"Leave it out, and write batch.micro={samples}"
    if block is not None:
        return f"blocks are all of data.block_size={block} tokens. {instead}"
    if values["data.streaming"]:
        return (
            f"the lengths of a stream are not known before the first step. {instead}, or "
            "data.streaming=false"
        )
    # Lengths decide which texts go together, on all ranks alike, before one of them is read.
    if values["data.transform"] or values["data.eval_transform"]:
        return (
            "a transform may change the length of a text, which must be known before the first "
            f"step. {instead}"
        )
    if longest is None:
        return (
            "it counts the tokens of texts. Add data.max_length=..., or leave it out and write "
            "batch.micro=..."
        )
    if tokens < longest:
        return (
            f"a text of data.max_length={longest} tokens would not fit. Write "
            f"batch.micro_tokens={longest} or more"
        )
    return ""


def _schedule(values: Values) -> Iterator[Finding]:
    for key in SCHEDULES:
        stages = values[key]
        if stages is None:
            continue
        # Without a stage at 0 the first step has no size.
        if 0 not in stages:
            why = "its first stage begins at 0"
            yield key, f"got {show(stages)}; {why}. Add 0: the effective batch of the first steps"
        for start, effective in stages.items():
            if start < 0 or effective < 1:
                takes = "a stage begins at 0 or more, and its batch is 1 or more"
                yield key, f"got {start}: {effective}; {takes}"
        # Each of these would need a meaning of its own where steps differ in size.
        for other, neutral in FOR_ONE_SIZE.items():
            if values[other] != neutral:
                got = f"got {show(values[other])} beside {key}; it is about steps of one size"
                fix = f"Write {other}={show(neutral)}"
                yield other, f"{got}. {fix}, or batch.effective in place of the schedule"


BATCH_RULES = (_micro, _auto, _shares, _two_of_three, _micro_tokens, _schedule)
