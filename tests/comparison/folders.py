"""Makes run folders of the size of a thumb, without training."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

IDENTITY: dict[str, Any] = {
    "seed": 0,
    "precision": "fp32",
    "batch.effective": 100,
    "optimizer.lr": 0.01,
    "code": "c0",
}
CONFIG = (
    "seed: 0\nbatch: {effective: 100, micro: all}\nlog: {every_steps: 10}\nname: x\noutput_dir: "
    "runs\n"
)


def loss_at(samples: int) -> float:
    return 1000 / (1000 + samples)


def make_run(
    folder: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    derived: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    loss: Callable[[int], float | None] = loss_at,
    every: int = 1000,
    last: int = 30_000,
    extra: Mapping[str, float] | None = None,
    ended: str | None = "finished",
    config: str = CONFIG,
) -> Path:
    """A finished run: a row every `every` samples, an evaluation every 5,000; 1,000 samples/s and
    0.5 GiB.
    """
    mine = {**IDENTITY, **(identity or {})}
    recipe = json.dumps(
        {key: value for key, value in mine.items() if key != "seed"}, sort_keys=True
    )
    facts = {
        **{"loop": "accumulate", "effective_batch": mine["batch.effective"], "micro_batch": 100},
        **{
            "accumulation_steps": 1,
            "world_size": 1,
            "lr_peak": mine["optimizer.lr"],
            "device": "cpu",
        },
        **{"exact": "verified", "parameters_gib": 0.1, "total_samples": last},
        **{"recipe_hash": recipe, "curve_hash": f"{recipe} {mine['seed']}"},
        **(derived or {}),
    }
    rows: list[dict[str, Any]] = []
    for samples in range(every, last + 1, every):
        place = {
            "train/global_step": samples // mine["batch.effective"],
            "progress/samples_seen": samples,
        }
        place["progress/hours"] = samples / 1000 / 3600
        if samples % 5000 == 0:
            rows.append(
                place | {"eval/loss": loss(samples), "eval/accuracy": 0.9, "eval/samples": 10.0}
            )
        measured = {
            "throughput/samples_per_second": 1000.0,
            "time/step_seconds": 0.1,
            "memory/peak_rss_gib": 0.5,
        }
        rows.append(
            place
            | {"train/learning_rate": 0.01, "train/loss": loss(samples)}
            | measured
            | (extra or {})
        )
    folder.mkdir(parents=True)
    write(folder / "plan.json", {"name": folder.name, "identity": mine, "derived": facts})
    write(
        folder / "environment.json",
        {"host": "here", "git": {"commit": "1", "dirty": False}} | (environment or {}),
    )
    if ended:
        write(folder / "ended.json", {"reason": ended, "code": 0, "step": 1})
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
