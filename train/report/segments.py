"""The mathematics that a run was trained with, and from which step on: it may have resumed with
others than it began with.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.checkpoint.manifest import step_of
from train.comparison.segments import Segment, segments_in
from train.config import differences, joined_hash
from train.disk import Unreadable, read_json
from train.plan.run_plan import RunPlan

PLAN_SHAPE = {"identity?": dict, "derived?": dict}
HASHES = ("curve_hash", "recipe_hash")


def segments_of(plan: RunPlan, resumed_from: Path | None) -> list[Segment]:
    """Of a run that starts, or resumes, now; to be called before its own plan.json is written
    again.
    """
    if resumed_from is None:
        return [_segment(plan, 0, {}, None)]
    step = step_of(resumed_from)
    earlier_plan = _plan_of(resumed_from)
    # An earlier version wrote no segments: its whole run is one.
    earlier = segments_in(earlier_plan.get("derived", {})) or [_only_segment(earlier_plan)]
    # Those that began after the checkpoint belong to steps that are trained again.
    kept = [segment for segment in earlier if segment["after_step"] < step]
    # The same mathematics as before: the segment goes on, and the hash stays that of one run.
    if kept and kept[-1]["curve_hash"] == plan.curve_hash:
        return kept
    # plan.json holds the values of its last segment. The checkpoint may be of an earlier one: the
    # changes of those that are dropped are undone, the last first.
    identity = dict(earlier_plan.get("identity", {}))
    for dropped in reversed(earlier[len(kept) :]):
        identity |= {key: before for key, (before, _) in dropped["changed"].items()}
    return [*kept, _segment(plan, step, differences(identity, plan.identity), resumed_from)]


def hashes(segments: Sequence[Segment]) -> dict[str, str]:
    """Those of all segments together: equal hashes must give equal curves."""
    joined = {}
    for name in HASHES:
        joined[name] = joined_hash([(segment["after_step"], segment[name]) for segment in segments])
    return joined


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


def _only_segment(plan: Mapping[str, Any]) -> Segment:
    """Of a plan.json that an earlier version wrote, or of one that is not there."""
    hashes = {name: plan.get(name) for name in HASHES}
    return {"after_step": 0, **hashes, "changed": {}, "resumed_from": None}


def _plan_of(checkpoint: Path) -> dict[str, Any]:
    """RUN/checkpoints/step-... -> RUN/plan.json; empty where it cannot be read."""
    try:
        plan: dict[str, Any] = read_json(checkpoint.parent.parent / "plan.json", PLAN_SHAPE)
    except (OSError, Unreadable):
        return {}
    return plan
