"""The model of a checkpoint as one file, whether it was saved sharded or not.

python -m train.merge CHECKPOINT OUT [--trust]

OUT becomes a folder that train.load opens, and OUT/final one for from_pretrained where the model is
transformers' own.
"""

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from train.checkpoint import NoCheckpoint, named
from train.checkpoint.files import read_model, read_state
from train.checkpoint.manifest import verify
from train.config import Foreign, load
from train.data import save_tokenizer
from train.errors import (
    BAD_CONFIG,
    FAILED,
    FINISHED,
    RunFailed,
    UserError,
    entry_point,
    exit_code,
    print_error,
)
from train.installation import command
from train.models.make import make_model, parameter_dtype
from train.models.scaling import STATE, Scaling
from train.models.weights import save_weights

USAGE = (
    f"usage: {command('merge')} CHECKPOINT OUT [--trust]      CHECKPOINT: runs/NAME, or one of "
    "runs/NAME/checkpoints"
)


class NotMerged(UserError):
    """There is no such checkpoint, or the output folder exists."""


@entry_point
def main(argv: Sequence[str]) -> int:
    words = [word for word in argv if word != "--trust"]
    if len(words) != 2 or {"-h", "--help"} & set(argv):
        print(USAGE)
        return FINISHED if {"-h", "--help"} & set(argv) else BAD_CONFIG
    try:
        print(merge(Path(words[0]), Path(words[1]), trust="--trust" in argv))
    except RunFailed as error:
        print_error(str(error))
        return exit_code(str(error), FAILED, 0)
    return exit_code("finished", FINISHED, 0)


def merge(checkpoint: Path, out: Path, trust: bool = False) -> Path:
    """The path of the file. The model is in memory once, on the CPU."""
    # Before anything is read, which takes long for a large model.
    if out.exists():
        raise NotMerged(f"{out} exists. Name a folder that does not")
    try:
        checkpoint = named(checkpoint.expanduser().absolute())
    except NoCheckpoint as error:
        raise NotMerged(str(error).removeprefix("checkpoint.resume=")) from error
    # RUN/checkpoints/step-... -> RUN
    run = checkpoint.parent.parent
    foreign = Foreign(run, frozenset({"model.target"}), trust, "--trust")
    config = load([str(run / "config.yaml")], foreign).config
    module = make_model(config)
    # Sizes only: named() has verified the contents.
    files = verify(checkpoint, contents=False)["files"]
    read_model(checkpoint, module, files)
    # From the checkpoint: config.yaml is that of the last start, and may differ.
    numbers = read_state(checkpoint, files).get(STATE)
    if numbers is not None:
        Scaling(numbers["mean"], numbers["deviation"], parameter_dtype(config)).install(module)
    # Last: a checkpoint that does not fit the model leaves no empty folder.
    out.mkdir(parents=True)
    # train.load reads the config to make the model again.
    shutil.copy(run / "config.yaml", out / "config.yaml")
    save_beside = partial(save_tokenizer, config.data.tokenizer)
    return save_weights(module, out / "final", save_beside=save_beside)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
