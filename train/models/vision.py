"""Any classifier of timm or torchvision, by its name. It needs the extra `vision`."""

import difflib
from typing import Any

from torch import nn

from train.models import ModelError
from train.models._extras import library


def vision(name: str, outputs: int, pretrained: bool = False, **args: Any) -> nn.Module:
    """The model of that name: timm's where it has one, else torchvision's, unwrapped.

    images (samples, channels, height, width), floating point -> (samples, outputs). The library
    downloads `pretrained` weights. `args` are its own: timm's in_chans, img_size, norm_layer ...,
    torchvision's image_size ... Raises ModelError.
    """
    # timm needs torchvision too, so both are asked for under one extra, whichever has the model.
    torchvision = library("torchvision", "vision", "vision")
    timm = library("timm", "vision", "vision")
    # Of this submodule alone: the others are detectors, video models, ...
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if timm.is_model(name):
        make = timm.create_model
        library_args = {"model_name": name, "pretrained": pretrained}
    elif name in classifiers:
        make = torchvision.models.get_model
        library_args = {"name": name, "weights": "DEFAULT" if pretrained else None}
    else:
        near = difflib.get_close_matches(name, {*timm.list_models(), *classifiers}, n=3)
        did_you_mean = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"model.args.name={name} is no classifier of timm or of torchvision{did_you_mean}"
        )
    try:
        model: nn.Module = make(**library_args, num_classes=outputs, **args)
    # such as an unknown argument, or no connection to the hub
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        hint = ". Weights in a file: model.init_from=FILE" if pretrained else ""
        raise ModelError(
            f"model.args: {make.__module__.split('.')[0]} cannot make {name}: {error}{hint}"
        ) from error
    return model
