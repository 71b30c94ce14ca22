"""What float16's loss is multiplied by."""

from train import metric_names
from train.parts import Metrics, Part
from train.step import Learner


def part(learner: Learner) -> Part:
    """Absent in every other precision. The host waits for the device here."""

    def measured(metrics: Metrics) -> Metrics:
        if not learner.scaler.is_enabled():
            return metrics
        return {**metrics, metric_names.LOSS_SCALE: learner.scaler.get_scale()}

    return Part(name="loss_scale", metrics=measured)
