"""Metric names. They live here and only here; the first part is the section in W&B, the suffix the unit."""

LOSS = "train/loss"
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/learning_rate"
GLOBAL_STEP = "train/global_step"
EPOCH = "train/epoch"
SKIPPED_STEPS = "train/skipped_steps"
EMPTY_STEPS = "train/empty_steps"

SAMPLES_SEEN = "progress/samples_seen"
HOURS = "progress/hours"

EFFECTIVE_SIZE = "batch/effective_size"
MICRO_SIZE = "batch/micro_size"
ACCUMULATION_STEPS = "batch/accumulation_steps"
WORLD_SIZE = "batch/world_size"

SAMPLES_PER_SECOND = "throughput/samples_per_second"
STEP_SECONDS = "time/step_seconds"

EVAL = "eval/"
EVAL_LOSS = "eval/loss"
EVAL_SAMPLES = "eval/samples"
