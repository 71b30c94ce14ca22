"""Names that no terminal and no file system should meet, `~`, and YAML that no loader survives."""

from pathlib import Path

import pytest

from tests.helpers import argv
from train.config import ConfigError, load


@pytest.mark.parametrize("key", ["name", "output_dir", "wandb.name", "wandb.group", "wandb.tags"])
@pytest.mark.parametrize("letter", ["\n", "\x1b", "\0", "\x7f", "\u202e", "\u200b", "\udcff"])
def test_what_nobody_sees_is_refused(tmp_path: Path, key: str, letter: str) -> None:
    quoted = "".join(f"\\u{ord(each):04x}" if each == letter else each for each in f"a{letter}b")
    value = f'"{quoted}"'
    if letter == "\udcff":  # no YAML can write it: bytes of a command line that are no UTF-8
        value = f"a{letter}b"
    typed = f"{key}=[{value}]" if key == "wandb.tags" else f"{key}={value}"

    with pytest.raises(ConfigError, match=key) as refused:
        load(argv(tmp_path, typed))

    assert letter == "\n" or letter not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"), [("name", "é" * 101), ("output_dir", f"runs/{'x' * 256}"), ("name", "..")]
)
def test_what_no_file_system_takes(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load(argv(tmp_path, f"{key}={value}"))


def test_other_scripts_are_names_too(tmp_path: Path) -> None:
    assert load(argv(tmp_path, "name=пробный-запуск-試験")).config.name == "пробный-запуск-試験"


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("extends: ~/tiny.yaml\noutput_dir: ~/here\n")
    typed = argv(
        tmp_path, "output_dir=~/runs", "checkpoint.resume=~/", "model.init_from=~/w.safetensors"
    )

    config = load(typed).config
    assert config.output_dir == f"{tmp_path}/runs"
    assert config.checkpoint.resume == str(tmp_path)
    assert config.model.init_from == f"{tmp_path}/w.safetensors"
    assert load([str(tmp_path / "own.yaml")]).config.output_dir == f"{tmp_path}/here"

    with pytest.raises(ConfigError, match="no home folder of ~nobody-of-that-name"):
        load(argv(tmp_path, "output_dir=~nobody-of-that-name/runs"))


@pytest.mark.parametrize("text", ["a: " + "[" * 100_000, "a: " + "{a: " * 100_000, "- " * 100_000])
def test_deep_yaml_is_a_sentence(tmp_path: Path, text: str) -> None:
    """libyaml's loader crashed the process."""
    (tmp_path / "deep.yaml").write_text(text)

    with pytest.raises(ConfigError, match="deep"):
        load([str(tmp_path / "deep.yaml")])


def test_aliases_do_not_grow_without_bound(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))

    with pytest.raises(ConfigError, match="aliases"):
        load([str(tmp_path / "bomb.yaml")])
