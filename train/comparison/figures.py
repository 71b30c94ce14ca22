"""Numbers as text, alike in tables, pictures and the page. Pure."""

import math
from typing import Any

from train.comparison.group import Spread

UNKNOWN = "-"


def figure(value: float | None) -> str:
    """Four significant digits; thousands with commas."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        rounded = float(f"{value:.4g}")
        if rounded == int(rounded):
            return (
                f"{int(rounded):,}"
                if abs(rounded) >= 1000 or value == rounded
                else f"{value:.{_decimals(value)}f}"
            )
        return f"{value:.{_decimals(value)}f}"
    return f"{value:,.0f}" if 1e5 <= abs(value) < 1e9 else f"{value:.3e}"


def with_spread(value: Spread | None, runs: int) -> str:
    """`0.0739 ± 0.0021`; `(2 of 3)` behind it where not all runs have it."""
    if value is None:
        return UNKNOWN
    text = figure(value.mean)
    if value.deviation is not None and math.isfinite(value.mean):
        text += f" ± {_small(value.deviation)}"
    return text if len(value.values) == runs else f"{text} ({len(value.values)} of {runs})"


def estimate(value: Spread | None, between: tuple[float, float] | None, runs: int) -> str:
    """`2.71 (1.4 to 5.2)`: what runs estimated, and how far they may be wrong, where that was
    recorded.
    """
    if value is None:
        return UNKNOWN
    text = figure(value.mean) + (
        f" ({_rough(between[0])} to {_rough(between[1])})" if between else ""
    )
    return text if len(value.values) == runs else f"{text} ({len(value.values)} of {runs})"


def hours_figure(hours: Spread | None) -> str:
    """In seconds, minutes or hours, as is readable."""
    if hours is None:
        return UNKNOWN
    unit, scale = time_unit(hours.mean)
    return f"{with_spread(scaled(hours, scale), len(hours.values))} {unit}"


def size(gib: float) -> str:
    """In KiB, MiB or GiB, as is readable, to three digits."""
    unit, scale = size_unit(gib)
    value = gib * scale
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def sizes(value: Spread | None, runs: int) -> str:
    if value is None:
        return UNKNOWN
    unit, scale = size_unit(value.mean)
    return f"{with_spread(scaled(value, scale), runs)} {unit}"


def size_unit(gib: float) -> tuple[str, float]:
    """(unit, how many of it are a GiB)"""
    if gib >= 1:
        return "GiB", 1.0
    return ("MiB", 1024.0) if gib * 1024 >= 1 else ("KiB", 1024.0**2)


def time_unit(hours: float) -> tuple[str, float]:
    """(unit, how many of it are an hour)"""
    if hours < 1 / 30:
        return "s", 3600.0
    return ("min", 60.0) if hours < 2 else ("h", 1.0)


def scaled(value: Spread | None, factor: float) -> Spread | None:
    return value and Spread(tuple(one * factor for one in value.values))


def plain(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _decimals(value: float) -> int:
    return max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0


def _rough(value: float) -> str:
    """Two significant digits."""
    return f"{float(f'{value:.2g}'):,g}"


def _small(deviation: float) -> str:
    """Two significant digits."""
    if deviation == 0:
        return "0"
    if not 1e-4 <= deviation < 1e5:
        return f"{deviation:.1e}"
    return f"{deviation:,.{max(0, 1 - math.floor(math.log10(deviation)))}f}"
