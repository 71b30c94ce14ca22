"""A convolutional network for images of any size."""

from collections.abc import Sequence

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Stages of 3x3 convolutions, each but the first halving the image, then average pooling.

    images (samples, H, W), (samples, channels, H, W) or (samples, H, W, channels), uint8 (0 to 255)
    or floating point (as it is) -> (samples, outputs). GroupNorm in place of BatchNorm, whose
    statistics would depend on the micro-batch.
    """

    def __init__(
        self, outputs: int, channels: int = 1, widths: Sequence[int] = (32, 64, 128)
    ) -> None:
        super().__init__()
        self.channels = channels
        stages = []
        before = channels
        for number, width in enumerate(widths):
            stages.append(stage(before, width, stride=1 if number == 0 else 2))
            before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, outputs)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self._channels_first(images))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits

    def _channels_first(self, images: Tensor) -> Tensor:
        # Whole numbers are brightness as it is stored; floats come scaled already
        # (train/data/pixels.py).
        if not images.is_floating_point():
            images = images.to(self.head.weight.dtype) / 255
        if images.dim() == 3 and self.channels == 1:
            return images.unsqueeze(1)
        # torch's own order of dimensions first: where both would fit, it is the one that is meant.
        if images.dim() == 4 and images.shape[1] == self.channels:
            return images
        if images.dim() == 4 and images.shape[3] == self.channels:
            return images.permute(0, 3, 1, 2)
        raise ValueError(
            f"ConvNet(channels={self.channels}) takes images (samples, H, W), (samples, channels, "
            f"H, W) or (samples, H, W, channels); got {tuple(images.shape)}. Set "
            "model.args.channels"
        )


def stage(before: int, after: int, stride: int) -> nn.Module:
    """(samples, before, H, W) -> (samples, after, H / stride, W / stride), rounded up."""
    # GroupNorm takes only a number of groups that divides the channels.
    groups = next(n for n in (8, 4, 2, 1) if after % n == 0)
    return nn.Sequential(
        # No bias: the norm behind each convolution has one.
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
        nn.GroupNorm(groups, after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.GroupNorm(groups, after),
        nn.ReLU(),
    )
