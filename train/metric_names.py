"""Metric names, all of them: the first part is the section in W&B, the suffix the unit.

Tokens are those of blocks (data.block_size), as the model takes them: the first tokens of documents
count, which are not predicted, and the padding of a set's last block does not.
"""

LOSS = "train/loss"
LOSS_MEAN = "train/loss_mean"  # over the applied steps since the last row
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/learning_rate"
GLOBAL_STEP = "train/global_step"
EPOCH = "train/epoch"
SKIPPED_STEPS = "train/skipped_steps"
LOSS_SCALE = "train/loss_scale"
EMPTY_STEPS = "train/empty_steps"

SAMPLES_SEEN = "progress/samples_seen"
TOKENS_SEEN = "progress/tokens_seen"
HOURS = "progress/hours"

EFFECTIVE_SIZE = "batch/effective_size"
EFFECTIVE_TOKENS = "batch/effective_tokens"
MICRO_SIZE = "batch/micro_size"
ACCUMULATION_STEPS = "batch/accumulation_steps"
WORLD_SIZE = "batch/world_size"
NOISE_SCALE = "batch/noise_scale"
# one standard error of the estimate, as is the next
NOISE_SCALE_ERROR = "batch/noise_scale_relative_error"
BREAK_EVEN = "batch/break_even_accumulation_steps"
BREAK_EVEN_ERROR = "batch/break_even_relative_error"

PEAK_ALLOCATED = "memory/peak_allocated_gib"
PEAK_RESERVED = "memory/peak_reserved_gib"
PEAK_RSS = "memory/peak_rss_gib"
FORWARD_BACKWARD_PEAK = "memory/forward_backward_peak_gib"
OPTIMIZER_PEAK = "memory/optimizer_peak_gib"
EVAL_PEAK = "memory/eval_peak_gib"
SMALLEST_PEAK = "memory/smallest_peak_gib"
WEIGHTS = "memory/weights_gib"
GRADIENTS = "memory/gradients_gib"
OPTIMIZER_STATE = "memory/optimizer_gib"
# GPU: of the peak, what forward and backward give back; CPU: what is saved
ACTIVATIONS = "memory/activations_gib"
ALLOCATOR_RETRIES = "memory/allocator_retries"
# predicted / measured - 1, of the peak of the first step that was measured; once
PLAN_ERROR = "memory/plan_error"

TRAINING_GRAPHS = "compile/training_graphs"  # that torch.compile has made since the start
EVALUATION_GRAPHS = "compile/evaluation_graphs"

SPLIT_ERROR = "exact/split_error"  # of an audit: |other cut's gradient - gradient| / |gradient|
VERIFIED = "exact/verified"  # 1 where the audit found no more than the arithmetic explains, else 0
VERIFIED_STEP = "exact/verified_step"  # the last one at which it was so
AUDIT_SECONDS = "exact/audit_seconds"

SAMPLES_PER_SECOND = "throughput/samples_per_second"
TOKENS_PER_SECOND = "throughput/tokens_per_second"
MFU = "throughput/mfu"
STEP_SECONDS = "time/step_seconds"
DATA_SECONDS = "time/data_seconds"
FORWARD_BACKWARD_SECONDS = "time/forward_backward_seconds"
SYNC_SECONDS = "time/sync_seconds"
OPTIMIZER_SECONDS = "time/optimizer_seconds"
SAVE_SECONDS = "time/save_seconds"
REST_SECONDS = "time/rest_seconds"
# of the time since the last row: ready to run, and no processor free; max over ranks
CPU_WAIT = "time/cpu_wait_share"

EVAL = "eval/"
EVAL_LOSS = "eval/loss"
EVAL_SAMPLES = "eval/samples"

# How columns of a table of runs begin that are in no row: report/columns.py, and how the run ended.
RUN = "run/"
BEST = "best/"
ENDED = "ended/"
RUN_EFFECTIVE_BATCH = RUN + "effective_batch"
RUN_MICRO_BATCH = RUN + "micro_batch"
RUN_ACCUMULATION_STEPS = RUN + "accumulation_steps"
RUN_WORLD_SIZE = RUN + "world_size"
RUN_EXACT = RUN + "exact"
RUN_PEAK_ALLOCATED = RUN + "peak_allocated_gib"
RUN_PEAK_RSS = RUN + "peak_rss_gib"
RUN_SAMPLES_PER_SECOND = RUN + "samples_per_second"
BEST_STEP = BEST + "step"
ONLY_CURVES = (
    "memory/",
    "throughput/",
    "time/",
    LEARNING_RATE,
    AUDIT_SECONDS,
    GRAD_NORM,
    LOSS_SCALE,
    EPOCH,
    EFFECTIVE_SIZE,
    EFFECTIVE_TOKENS,
    MICRO_SIZE,
    ACCUMULATION_STEPS,
    WORLD_SIZE,
    EVAL_SAMPLES,
)
"""Prefixes of metrics that are curves alone: their last value says nothing of the run, and is no
column in the table of runs.
"""
