"""What W&B has of a real run beside the numbers: the texts that its model wrote, and why it is not
exact.
"""

import json
from pathlib import Path
from typing import Any

from tests.report.test_tracker import in_process, online
from tests.report.test_weights import train
from tests.tasks.test_tasks import LM
from tests.wandb_server import WandbServer
from train import metric_names as names

PLACE = (names.GLOBAL_STEP, names.SAMPLES_SEEN, names.TOKENS_SEEN)


def write(folder: str) -> dict[str, Any]:
    return train(
        folder, "online", *LM, "precision=bf16", "duration={steps: 2}", "evaluate.every_steps=1"
    )


def test_texts_and_reasons_arrive(tmp_path: Path) -> None:
    with WandbServer() as server:
        ended = in_process(write, online(server, tmp_path), tmp_path, folder=str(tmp_path))

        assert (ended.result["code"], server.unknown) == (0, set())
        assert not [
            line
            for line in ended.stderr.splitlines()
            if line and not line.startswith("Tokens of text: ")
        ]
        sent = []
        for row in server.run.history:
            if "samples" in row:
                table = json.loads(
                    server.uploads[f"/storage/isobatch/{server.run.id}/{row['samples']['path']}"]
                )
                place = {name: row[name] for name in PLACE}
                sent += [
                    place | dict(zip(table["columns"], texts, strict=True))
                    for texts in table["data"]
                ]
        kept = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
        assert len(sent) == 4
        assert sent == [json.loads(line) for line in kept]

        derived = json.loads((tmp_path / "run" / "plan.json").read_text())["derived"]
        assert server.run.config["derived"] == derived
        assert derived["exact"] == "false"
        assert derived["exact_reasons"].startswith("bf16 rounds each micro-batch: ")
