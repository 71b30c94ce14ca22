"""What the data is, in one text: equal for equal data wherever it lies, another one for any other
data.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, interleave_datasets, load_from_disk

from tests.data.files import write
from tests.helpers import argv, rows, tiny
from train.accumulate import compute_gradient
from train.config import load
from train.data import digest as module
from train.data.digest import END, digest_of_files, digest_of_rows
from train.data.splits import load_splits
from train.main import main


def test_of_rows_every_byte_counts() -> None:
    values = np.random.default_rng(0).normal(size=(50, 6))
    expected = digest_of_rows(Dataset.from_dict({"x": values}))

    assert expected.startswith("50 rows, sha256 ")
    assert digest_of_rows(Dataset.from_dict({"x": values.copy()})) == expected
    for row in (0, 24, 49):
        other = values.copy()
        other[row, 3] = np.nextafter(other[row, 3], 9)
        assert digest_of_rows(Dataset.from_dict({"x": other})) != expected
    assert digest_of_rows(Dataset.from_dict({"y": values})) != expected
    assert digest_of_rows(Dataset.from_dict({"x": values}).select(range(1, 50))) != expected
    chosen = Dataset.from_dict({"x": values})
    assert digest_of_rows(chosen.shuffle(seed=1)) != digest_of_rows(chosen.shuffle(seed=2))


def test_of_a_large_table_on_the_disk_both_ends_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(module, "ROWS", 10)
    values = list(range(1000))
    found = {}
    for name, changed in (
        ("same", None),
        ("again", None),
        ("first", 0),
        ("middle", 500),
        ("last", 999),
    ):
        own = [-1 if i == changed else i for i in values]
        Dataset.from_dict({"x": own}).save_to_disk(str(tmp_path / name))
        found[name] = digest_of_rows(load_from_disk(str(tmp_path / name)))

    assert found["same"] == found["again"] == found["middle"]
    assert len({found["same"], found["first"], found["last"]}) == 3


def test_of_files_names_sizes_and_ends_count(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    content = bytes(np.random.default_rng(0).integers(0, 256, 3 * END, dtype=np.uint8))
    (folder / "one.bin").write_bytes(content)
    (folder / "two.bin").write_bytes(b"short")

    def digest(root: Path) -> str:
        return digest_of_files([path for path in root.iterdir() if path.is_file()], root)

    expected = digest(folder)
    assert expected.startswith(f"2 files of {3 * END + 5:,} bytes, sha256 ")
    # Elsewhere, and written at another time: the same.
    shutil.copytree(folder, tmp_path / "b", copy_function=shutil.copy)
    assert digest(tmp_path / "b") == expected

    def changed(name: str, place: int) -> str:
        own = tmp_path / name
        shutil.copytree(folder, own)
        (own / "one.bin").write_bytes(
            content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        )
        return digest(own)

    assert changed("start", 0) != expected
    assert changed("end", 3 * END - 1) != expected
    (folder / "two.bin").rename(folder / "three.bin")
    assert digest(folder) != expected


def test_of_a_stream_its_shards_count() -> None:
    def some(parts: list[int], more: Any = None) -> Iterator[dict[str, int]]:
        yield from ({"x": part} for part in parts)

    def stream(parts: list[int], more: Any = None) -> IterableDataset:
        return IterableDataset.from_generator(some, gen_kwargs={"parts": parts, "more": more})

    expected = digest_of_rows(stream([1, 2, 3]))
    assert expected.startswith("a stream of 3 shards, sha256 ")
    assert digest_of_rows(stream([1, 2, 3]).shuffle(seed=1).select_columns(["x"])) == expected
    assert digest_of_rows(stream([1, 2, 4])) != expected
    both = [interleave_datasets([stream([1, 2, 3]), stream([last])]) for last in (4, 5)]
    assert digest_of_rows(both[0]) != digest_of_rows(both[1])
    # What has no text of its own counts by its class, not by where it lies in memory.
    assert digest_of_rows(stream([1], object())) == digest_of_rows(stream([1], object()))


@pytest.mark.parametrize("saved", [False, True])
def test_a_source_has_the_same_digest_however_it_is_read(tmp_path: Path, saved: bool) -> None:
    path = tmp_path / "own"
    if saved:
        tiny(30).save_to_disk(str(path))
    else:
        path = write(
            tmp_path / "own.csv",
            {"inputs": [float(i) for i in range(30)], "labels": [0, 1, 2] * 10},
        )
    options = (
        [],
        ["data.preload=false"],
        ["data.preload=true"],
        ["data.streaming=true"] if not saved else [],
    )
    found = set()
    for overrides in options:
        config = load(argv(tmp_path, f"data.source={path}", *overrides)).config
        found |= set(load_splits(config, ("inputs", "labels")).digests.items())

    assert len(found) == 1
    assert next(iter(found))[0] == "train"


def test_data_that_changed_between_two_starts_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "own"
    tiny(30).save_to_disk(str(data))
    words = argv(tmp_path, f"data.source={data}", "duration={steps: 2}", "checkpoint.resume=auto")
    assert main(words, "accumulate", compute_gradient) == 0
    shutil.rmtree(data)
    tiny(33).save_to_disk(str(data))

    assert main(words, "accumulate", compute_gradient) == 2
    refused = capsys.readouterr().err
    assert "data: '1 file of " in refused
    assert "data." not in refused.partition("Set one of")[0]  # nothing else differs
    on = f"checkpoint.resume={tmp_path / 'run'}"
    assert on in refused
    # Once the user has insisted it is named, and the run goes on.
    assert main([*words, on, "duration={steps: 4}"], "accumulate", compute_gradient) == 0
    assert "data: '1 file of " in (tmp_path / "run/log.txt").read_text()
    assert [row["train/global_step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
