"""Libraries of the extras, imported only when a model is made: that takes seconds."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from train.installation import how_to_install
from train.models import ModelError


def library(name: str, target: str, extra: str) -> Any:
    """The library that model.target needs. Raises ModelError where it is not installed."""
    # Looked up, not imported and caught: an ImportError from inside the library is another fault,
    # and stays what it is.
    if find_spec(name) is None:
        raise ModelError(
            f"model.target={target} needs {name}, which is not installed. "
            f"Run: {how_to_install(extra)}"
        )
    # Before the library: timm, transformers and peft import torchvision where it is installed.
    fix_torchvision()
    return import_module(name)


def fix_torchvision() -> None:
    """Import torchvision, where it is installed, also beside a torch that it was not built for.

    PyPI's (0.28) is built for CUDA. Beside a torch for the CPU its compiled operators cannot be
    loaded, which only detectors call. Yet the import fails, since it describes two of them that are
    not defined, and with it fail timm, transformers and peft, which all look whether torchvision is
    installed. So those two are defined here.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        # Declared, never defined: a detector that calls one of them still fails, and nothing else
        # does.
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
        import_module("torchvision")
