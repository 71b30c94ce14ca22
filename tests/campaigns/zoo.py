"""The confusion table of `exact` over the zoo: python -m tests.campaigns.zoo > TABLE.md (half a
minute, one core).
"""

import warnings
from collections import Counter

import torch

from tests.exactness.zoo.animals import Animal, true_error
from tests.exactness.zoo.keeper import ZOO, tried

DRAWS = 10  # of the random numbers, for a mean true error


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows, count = [], Counter[tuple[bool, str]]()
    for animal in ZOO:
        found = tried(animal)
        count[animal.exact, found.exact] += 1
        reason = "" if found.exact == "verified" else found.reasons[0].replace("|", "/")
        rows.append(
            f"| {animal.name} | {_kind(animal)} | {true_error(animal, DRAWS):.0e} | {found.exact} "
            f"| {reason} |"
        )
    print("| | verified | declared | false |\n|---|---|---|---|")
    for exact in (False, True):
        numbers = [count[exact, verdict] for verdict in ("verified", "declared", "false")]
        print(f"| {'exact' if exact else 'inexact'} | {' | '.join(map(str, numbers))} |")
    print("\n| model or task | is | true error | verdict | first reason |\n|---|---|---|---|---|")
    print(*rows, sep="\n")


def _kind(animal: Animal) -> str:
    return "exact" if animal.exact else "inexact"


if __name__ == "__main__":
    main()
