"""What a step's time and a run's memory consist of, set-up by set-up. Pure."""

from train import metric_names
from train.comparison.comparison import Comparison
from train.comparison.cost import PHASES, PROCESS
from train.comparison.spread import Spread

Parts = dict[str, list[float]]
"""{part: mean over runs, of each set-up}; 0 where a set-up did not measure it."""

HELD = {
    "weights": metric_names.WEIGHTS,
    "gradients": metric_names.GRADIENTS,
    "optimizer": metric_names.OPTIMIZER_STATE,
}


def memory_kind(comparison: Comparison) -> str | None:
    """Of the peak, where all runs have the same."""
    kinds = {cost.memory_kind for cost in comparison.all_costs}
    return kinds.pop() if len(kinds) == 1 else None


def is_process(comparison: Comparison) -> bool:
    return memory_kind(comparison) == PROCESS


def time_parts_ms(comparison: Comparison) -> Parts:
    """Of each phase; empty where no run measured them."""
    parts = {}
    for phase in PHASES.values():
        parts[phase] = [_phase_ms(comparison, index, phase) for index in comparison.indices]
    return _measured(parts)


def _phase_ms(comparison: Comparison, index: int, phase: str) -> float:
    return 1000 * _mean(comparison.cost(index, lambda cost: cost.phase_seconds.get(phase)))


def memory_parts_gib(comparison: Comparison) -> Parts:
    """Empty where runs have memory of different kinds.

    Of a GPU: what the peak consists of, as far as it was measured, and what the allocator reserves
    beyond. Of a process: what of it is the model's.
    """
    # GPU and process in one bar would add up what does not belong together.
    if memory_kind(comparison) is None:
        return {}
    parts = {name: _peaks(comparison, metric) for name, metric in HELD.items()}
    if is_process(comparison):
        parts["activations"] = _peaks(comparison, metric_names.ACTIVATIONS)
        return _measured(parts)
    all_else = []
    beyond = []
    reserved = _peaks(comparison, metric_names.PEAK_RESERVED)
    for index in comparison.indices:
        # The peak of a GPU includes the activations, so the rest is what no gauge has counted.
        peak = _mean(comparison.cost(index, lambda cost: cost.peak_gib))
        held = sum(values[index] for values in parts.values())
        # Each is that of the largest rank: their sum may pass the peak, and no bar is negative.
        all_else.append(max(0.0, peak - held))
        beyond.append(max(0.0, reserved[index] - peak))
    return _measured(parts | {"all else": all_else, "reserved beyond": beyond})


def _peaks(comparison: Comparison, metric: str) -> list[float]:
    return [_mean(comparison.peak(index, metric)) for index in comparison.indices]


def _mean(value: Spread | None) -> float:
    return value.mean if value else 0.0


def _measured(parts: Parts) -> Parts:
    return {name: values for name, values in parts.items() if any(values)}
