"""Plain lines for a person: the plan, a line for each row, a closing line."""

from collections.abc import Mapping

from train import names


class Screen:
    """Writes on rank 0 only."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def say(self, *lines: str) -> None:
        if self._enabled:
            print(*lines, sep="\n", flush=True)

    def row(self, row: Mapping[str, float], total_steps: int) -> None:
        step = f"step {row[names.GLOBAL_STEP]:>{len(str(total_steps))}.0f}/{total_steps}"
        if names.EVAL_SAMPLES in row:
            metrics = {k.removeprefix(names.EVAL): v for k, v in row.items() if k.startswith(names.EVAL)}
            samples = metrics.pop("samples")
            self.say(
                "  ".join([step, "eval", *(f"{k} {v:.4f}" for k, v in metrics.items()), f"on {samples:.0f} samples"])
            )
            return
        parts = [step]
        if names.LOSS in row:
            parts += [f"loss {row[names.LOSS]:.4f}", f"grad norm {row[names.GRAD_NORM]:.3g}"]
        parts += [
            f"lr {row[names.LEARNING_RATE]:.3g}",
            f"batch {row[names.EFFECTIVE_SIZE]:.0f}",
            f"{row[names.SAMPLES_PER_SECOND]:,.0f} samples/s",
        ]
        if row[names.SKIPPED_STEPS]:
            parts.append(f"{row[names.SKIPPED_STEPS]:.0f} steps skipped: gradient not finite")
        self.say("  ".join(parts))
