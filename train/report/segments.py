"""With which mathematics a run was trained from which step on: it may have gone on with others than
it began with.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.checkpoint.manifest import step_of
from train.config import differences, joined_hash
from train.disk import MAYBE_TEXT, Unreadable, misfit, read_json
from train.plan.run_plan import RunPlan

Segment = Mapping[str, Any]
"""As plan.json and W&B have it:

after_step    the step after which it begins; 0: the start of training
curve_hash    of what was trained with; None: the checkpoint's run is not there to be asked
recipe_hash   the same without the seed
changed       {key: [there, now]}: what is not as it was in the segment before
resumed_from  the checkpoint it begins with
"""


SHAPE = {"after_step": int, "curve_hash": MAYBE_TEXT, "recipe_hash": MAYBE_TEXT, "changed": dict}
KNOWN = {"identity?": dict, "derived?": dict}


def segments_in(derived: Mapping[str, Any]) -> list[Segment]:
    """Those that plan.json tells; none where it tells nothing that makes sense."""
    told = derived.get("segments")
    if not isinstance(told, list) or any(misfit(each, SHAPE) for each in told):
        return []
    pairs = [pair for each in told for pair in each["changed"].values()]
    return told if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs) else []


def segments_of(plan: RunPlan, resumed_from: Path | None) -> list[Segment]:
    """Of a run that starts, or resumes, now; to be called before its own plan.json is written
    again.
    """
    if resumed_from is None:
        return [_segment(plan, 0, {}, None)]
    step = step_of(resumed_from)
    earlier = _plan_of(resumed_from)
    before = segments_in(earlier.get("derived", {})) or [_only_segment(earlier)]
    kept = [segment for segment in before if segment["after_step"] < step]
    if kept and kept[-1]["curve_hash"] == plan.curve_hash:
        return kept
    there = dict(earlier.get("identity", {}))
    for dropped in reversed(before[len(kept) :]):
        there |= {key: value for key, (value, _) in dropped["changed"].items()}
    return [*kept, _segment(plan, step, differences(there, plan.identity), resumed_from)]


def hashes(segments: Sequence[Segment]) -> dict[str, str]:
    """Those of the whole run: equal hashes must give equal curves."""
    found = {}
    for name in ("curve_hash", "recipe_hash"):
        found[name] = joined_hash([(segment["after_step"], segment[name]) for segment in segments])
    return found


def _segment(
    plan: RunPlan, after_step: int, changed: Mapping[str, Any], resumed_from: Path | None
) -> Segment:
    return {
        "after_step": after_step,
        "curve_hash": plan.curve_hash,
        "recipe_hash": plan.recipe_hash,
        "changed": changed,
        "resumed_from": None if resumed_from is None else str(resumed_from),
    }


def _only_segment(earlier: Mapping[str, Any]) -> Segment:
    """Of a plan.json that an earlier version wrote, or of one that is not there."""
    hashed = {name: earlier.get(name) for name in ("curve_hash", "recipe_hash")}
    return {"after_step": 0, **hashed, "changed": {}, "resumed_from": None}


def _plan_of(checkpoint: Path) -> dict[str, Any]:
    """RUN/checkpoints/step-... -> RUN/plan.json."""
    try:
        plan: dict[str, Any] = read_json(checkpoint.parent.parent / "plan.json", KNOWN)
    except (OSError, Unreadable):
        return {}
    return plan
