"""Numbers as text: the same in tables, pictures and pages. Pure."""

import math
from dataclasses import dataclass
from typing import Any

from train.comparison.spread import Spread

UNKNOWN = "-"


@dataclass(frozen=True)
class Unit:
    name: str
    scale: float
    """What a value in the base unit, GiB or hours, is multiplied by."""


def format_number(value: float | None) -> str:
    """Four significant digits; thousands with commas."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        if 1e5 <= abs(value) < 1e9:
            return f"{value:,.0f}"
        return f"{value:.3e}"
    rounded = float(f"{value:.4g}")
    is_whole = rounded == int(rounded)
    # 1234.4 is 1,234: thousands need no digits behind the point.
    if is_whole and (abs(rounded) >= 1000 or value == rounded):
        return f"{int(rounded):,}"
    return f"{value:.{_decimals(value)}f}"


def format_value(value: Any) -> str:
    """A value of a config or a plan, which need not be a number."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def format_spread(value: Spread | None, num_runs: int, scale: float = 1.0) -> str:
    """`0.0739 ± 0.0021`; `(2 of 3)` behind it where not all runs have it."""
    if value is None:
        return UNKNOWN
    scaled = Spread(tuple(one * scale for one in value.values))
    text = format_number(scaled.mean)
    # Two digits of a deviation: more would be noise of the estimate itself.
    if scaled.deviation is not None and math.isfinite(scaled.mean):
        text += f" ± {_two_digits(scaled.deviation)}"
    return text + _share_of_runs(value, num_runs)


def format_estimate(
    value: Spread | None, interval: tuple[float, float] | None, num_runs: int
) -> str:
    """`2.71 (1.4 to 5.2)`: an estimate, and its interval where its error was logged."""
    if value is None:
        return UNKNOWN
    text = format_number(value.mean)
    if interval:
        # Two digits: the interval is an estimate too.
        least, most = (float(f"{end:.2g}") for end in interval)
        text += f" ({least:,g} to {most:,g})"
    return text + _share_of_runs(value, num_runs)


def _share_of_runs(value: Spread, num_runs: int) -> str:
    if len(value.values) == num_runs:
        return ""
    return f" ({len(value.values)} of {num_runs})"


def format_hours(hours: Spread | None) -> str:
    """In seconds, minutes or hours, as is readable."""
    if hours is None:
        return UNKNOWN
    unit = time_unit(hours.mean)
    return f"{format_spread(hours, len(hours.values), unit.scale)} {unit.name}"


def format_gib(gib: float) -> str:
    """In KiB, MiB or GiB, as is readable, to three digits."""
    unit = memory_unit(gib)
    value = gib * unit.scale
    if value >= 1000:
        return f"{value:,.0f} {unit.name}"
    return f"{value:.3g} {unit.name}"


def format_memory(gib: Spread | None, num_runs: int) -> str:
    if gib is None:
        return UNKNOWN
    unit = memory_unit(gib.mean)
    return f"{format_spread(gib, num_runs, unit.scale)} {unit.name}"


def memory_unit(gib: float) -> Unit:
    if gib >= 1:
        return Unit("GiB", 1.0)
    if gib * 1024 >= 1:
        return Unit("MiB", 1024.0)
    return Unit("KiB", 1024.0**2)


def time_unit(hours: float) -> Unit:
    if hours < 1 / 30:
        return Unit("s", 3600.0)
    if hours < 2:
        return Unit("min", 60.0)
    return Unit("h", 1.0)


def _decimals(value: float) -> int:
    """Behind the point, for four significant digits."""
    if value == 0:
        return 0
    return max(0, 3 - math.floor(math.log10(abs(value))))


def _two_digits(deviation: float) -> str:
    if deviation == 0:
        return "0"
    if not 1e-4 <= deviation < 1e5:
        return f"{deviation:.1e}"
    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{deviation:,.{decimals}f}"
