"""Libraries of the extras, imported when a model is made: it takes seconds, and a config is checked
without them.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from train.installation import how_to_install
from train.models import ModelError


def library(name: str, target: str, extra: str) -> Any:
    """The library that model.target needs. Raises ModelError where it is not installed."""
    if find_spec(name) is None:
        raise ModelError(
            f"model.target={target} needs {name}, which is not installed. "
            f"Type: {how_to_install(extra)}"
        )
    mend_torchvision()
    return import_module(name)


def mend_torchvision() -> None:
    """Import torchvision, where it is installed: also beside a torch that it was not built for.

    PyPI's (0.28) is built for CUDA. Beside a torch for the CPU its compiled operators cannot be
    loaded, which only detectors call. Yet it fails, as two of them are not there to be described,
    and with it timm, transformers and peft, which all look whether it is installed. So those two
    are declared.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
        import_module("torchvision")
