"""A curve is a mapping, whatever the order of its rows, and looks up one place without a look at
all.
"""

from typing import Any

import numpy as np
import pytest

from train.comparison.curve import Curve, common_samples


def curve(points: list[tuple[int, float]]) -> Curve:
    return Curve(
        np.array([at for at, _ in points], np.int64), np.array([value for _, value in points])
    )


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(8, 1.0)],
        [(8, 1.0), (16, 2.0), (24, 3.0)],
        [(8, 1.0), (16, 2.0), (8, 3.0), (24, 4.0)],  # written again after a restart
        [(16, 2.0), (8, 1.0)],
    ],
)
def test_it_is_what_a_dict_of_its_rows_is(points: list[tuple[int, float]]) -> None:
    expected, found = dict(points), curve(points)

    assert list(found.items()) == list(expected.items())
    assert [found.get(at) for at in (0, 7, 8, 9, 16, 24, 25)] == [
        expected.get(at) for at in (0, 7, 8, 9, 16, 24, 25)
    ]
    places = common_samples([found])
    assert found.at(places).tolist() == [expected[at] for at in sorted(expected)]


def test_a_place_is_found_without_a_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_once: list[int] = []
    argsort = np.argsort

    def counting(values: Any, **more: Any) -> Any:
        sorted_once.append(len(values))
        return argsort(values, **more)

    monkeypatch.setattr(np, "argsort", counting)
    found = curve([(at, float(at)) for at in range(1000)])

    assert dict(found) == {at: float(at) for at in range(1000)}
    assert sorted_once == [1000]
