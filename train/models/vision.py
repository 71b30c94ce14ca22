"""Any classifier of timm or torchvision, by its name. It needs the extra `vision`."""

import difflib
from typing import Any

from torch import nn

from train.models import ModelError
from train.models._extras import library


def vision(name: str, outputs: int, pretrained: bool = False, **args: Any) -> nn.Module:
    """The model of that name: timm's where it has one, else torchvision's, and nothing around it.

    images (samples, channels, height, width), floating point -> (samples, outputs). `pretrained`
    weights are fetched by the library. `args` are its own: timm's in_chans, img_size, norm_layer
    ..., torchvision's image_size ... Raises ModelError.
    """
    torchvision, timm = (
        library("torchvision", "vision", "vision"),
        library("timm", "vision", "vision"),
    )
    theirs = torchvision.models.list_models(module=torchvision.models)  # no detectors, no videos
    given: dict[str, Any]
    if timm.is_model(name):
        maker, given = timm.create_model, {"model_name": name, "pretrained": pretrained}
    elif name in theirs:
        maker, given = (
            torchvision.models.get_model,
            {"name": name, "weights": "DEFAULT" if pretrained else None},
        )
    else:
        near = difflib.get_close_matches(name, {*timm.list_models(), *theirs}, n=3)
        did_you_mean = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"model.args.name={name} is no classifier of timm or of torchvision{did_you_mean}"
        )
    try:
        model: nn.Module = maker(**given, num_classes=outputs, **args)
    # an argument that it has not, no way to the Hub
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        how = ". Weights in a file: model.init_from=FILE" if pretrained else ""
        raise ModelError(
            f"model.args: {maker.__module__.split('.')[0]} cannot make {name}: {error}{how}"
        ) from error
    return model
