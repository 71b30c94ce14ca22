"""Made to be forked: take a feature's file and its lines away, and both loops still train."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Edits = list[tuple[str, str, str]]  # (file, what to replace, by what); every one must apply

FEATURES: dict[str, Edits] = {
    "models/hf.py models/vision.py": [],
    "memory.py": [
        ("run.py", r"from train\.memory import Memory, over_ranks\n", ""),
        ("run.py", r" +memory = Memory\(.*\n", ""),
        ("run.py", r"memory\.summary, ", ""),
        ("run.py", r"memory\.mark, ", "lambda phase: None, "),
        ("run.py", r"memory\.around\(evaluation, names\.EVAL_PEAK\)", "evaluation"),
        ("run.py", r"lambda: over_ranks\(ranks\.gather\(memory\.take\(\)\)\), ", ""),
    ],
    "phases.py": [
        ("run.py", r"from train\.phases import Phases\n", ""),
        ("run.py", r" +phases = Phases\(.*\n", ""),
        ("run.py", r"phases\.windows\((.*)\)\n", r"\1\n"),
        ("run.py", r"phases\.outside\((memory.*)\)\n", r"\1\n"),
        ("run.py", r"phases\.outside\((checkpoints\.save)\)", r"\1"),
        ("run.py", r"phases\.take\(\)", "{}"),
        ("run.py", r"phases\.around\((reduced\(.*?\))\)", r"\1"),
    ],
    "guard.py": [
        ("run.py", r"from train\.guard import agreed, guarded\n", ""),
        ("run.py", r"agreed\((.*), learner, ranks\)", r"\1"),
        ("run.py", r"guarded\((.*), ranks\)", r"\1"),
    ],
    "reduction.py": [
        ("run.py", r"from train\.reduction import reduced\n", ""),
        ("run.py", r"reduced\(compute_gradient, learner, ranks\)", "compute_gradient"),
        ("setup.py", r"from train\.reduction import is_explicit\n", ""),
        ("setup.py", r"is_explicit\(dtype\)", "False"),
    ],
    "blocks.py": [
        ("setup.py", r"from train\.blocks import checkpoint_blocks\n", ""),
        ("setup.py", r" +checkpoint_blocks\(.*\n", ""),
        ("refusals.py", r"from train\.blocks import NoBlocks\n", ""),
        ("refusals.py", r" +NoBlocks,\n", ""),
    ],
    "noise.py worth.py": [
        ("run.py", r"from train\.noise import NoiseScale\n", ""),
        ("run.py", r" +noise = NoiseScale\(.*\n", ""),
        ("run.py", r" +more \|= \{\"noise_scale\".*\n", ""),
        ("run.py", r", noise\.verdict\]", "]"),
        ("run.py", r"noise\.around\((.*)\), ranks", r"\1, ranks"),
        ("run.py", r"noise\.take\((.*)\)\]", r"\1]"),
    ],
    "data/by_length.py data/lengths.py padded.py": [
        ("data/__init__.py", r"from train\.data\.by_length import .*\n", ""),
        ("data/__init__.py", r" +\"ByLength\",\n", ""),
        ("data/__init__.py", r" +\"Padding\",\n", ""),
        ("data/__init__.py", r" +\"in_memory\",\n", ""),
        ("data/sources.py", r"from train\.data\.by_length import .*\n", ""),
        ("data/sources.py", r" +padding: Padding \| None = None.*\n", ""),
        ("data/sources.py", r"\(self\.train\.trial if .* else self\.train\.first\)", "self.train.first"),
        ("data/sources.py", r" +if config\.batch\.micro_tokens is not None:\n(?: {8}.*\n)+", ""),
        ("data/sources.py", r"labels, notes, padding\)", "labels, notes)"),
        ("data/sources.py", r"notes, padding = (.*), None", r"notes = \1"),
        ("preparing.py", r"import ByLength, Sets", "import Sets"),
        ("preparing.py", r" \+ \(\(samples\.note.*\)\),", ","),
        ("preparing.py", r" +micro_steps=.*\n", ""),
        ("preparing.py", r", sets\.padding\)", ")"),
        ("exact.py", r"import Padding, Sets, in_memory\n", "import Rows, Sets\n"),
        ("exact.py", r"in_memory\(samples\)", "samples"),
        ("exact.py", r"in_memory\(sets\.train\)", "sets.train"),
        ("exact.py", r"if rows is None:", "if not isinstance(rows, Rows):"),
        ("exact.py", r", padding: Padding \| None = None\) -> Exactness", ") -> Exactness"),
        ("exact.py", r", padding: Padding \| None\) -> Exactness", ") -> Exactness"),
        ("exact.py", r", precision, padding\)", ", precision)"),
        ("exact.py", r"from train\.padded import .*\n", ""),
        ("exact.py", r"_split\(batch, padding\)\n", "_split(batch)\n"),
        ("exact.py", r" {8}if padding:\n(?: {12}.*\n)+", ""),
        ("exact.py", r"_split\(batch: Batch, padding: Padding \| None\)", "_split(batch: Batch)"),
        ("exact.py", r"\n    if padding:\n.*\n", "\n"),
        ("exact.py", r" +elif padding and .*\n.*\n", ""),
    ],
    "profiling.py": [
        ("run.py", r"from train\.profiling import profiled\n", ""),
        ("run.py", r"profiled\(windows, .*, ranks\.rank\)", "windows"),
    ],
    "watchdog.py": [
        ("run.py", r"from train\.watchdog import Watchdog\n", ""),
        ("run.py", r" +watchdog = Watchdog\(.*\n", ""),
        ("run.py", r" +windows = watchdog\.windows\(windows\)\n", ""),
        ("run.py", r"watchdog\.beat", "lambda: None"),
    ],
    "ema.py": [
        ("run.py", r"from train\.ema import Ema\n", ""),
        ("run.py", r" +ema = Ema\(.*\n", ""),
        ("run.py", r" +evaluation = ema\.around\(.*\n", ""),
        ("run.py", r" +more \|= \{\"ema\".*\n", ""),
        ("run.py", r" \| \(\{\"ema\".*\)\n", "\n"),
    ],
    "page.py comparison/panels.py": [],
    "report/weights.py": [
        ("report/opening.py", r"from train\.report\.weights import log_model\n", ""),
        ("report/opening.py", r" +if loaded\.config\.wandb\.log_model:\n.*\n", ""),
    ],
    "utilisation.py": [
        ("run.py", r"from train\.utilisation import utilisation\n", ""),
        ("run.py", r", utilisation\(.*\)\]", "]"),
    ],
    "samples.py": [
        ("run.py", r"from train\.samples import sampled\n", ""),
        ("run.py", r" +evaluation = evaluation and sampled\(.*\n", ""),
    ],
    "smoke.py": [
        ("entry.py", r"from train\.smoke import smoke\n", ""),
        ("entry.py", r" +if \"--smoke\" .*\n.*\n.*\n +else:\n    ( +ended = )", r"\1"),
    ],
}


@pytest.mark.parametrize("feature", FEATURES)
def test_both_loops_train_without(feature: str, tmp_path: Path) -> None:
    for folder in ("train", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in feature.split():
        (tmp_path / "train" / file).unlink()
    for file, old, new in FEATURES[feature]:
        path = tmp_path / "train" / file
        text, count = re.subn(old, new, path.read_text())
        assert count == 1, f"{file}: {old} applied {count} times"
        path.write_text(text)

    for loop in ("standard", "accumulate"):
        command = [sys.executable, "-m", f"train.{loop}", "configs/digits.yaml", "duration.steps=3", f"name={loop}"]
        done = subprocess.run(
            [*command, "wandb.mode=disabled"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "finished: 3 steps" in done.stdout
