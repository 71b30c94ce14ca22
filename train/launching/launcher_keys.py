"""One table: what becomes of each key of accelerate's launcher file and of each flag after `--`.

The names are those of accelerate 1.15: a test compares them with its source. docs/cluster.md shows
the same table.
"""

from dataclasses import dataclass
from typing import Any

from train.installation import LAUNCH, LAUNCH_NAME

TAKEN, NO_EFFECT, REFUSED = "taken", "no effect", "refused"

PRECISIONS = ("bf16", "fp16")


@dataclass(frozen=True)
class Row:
    keys: tuple[str, ...]
    fate: str
    says: str
    """What the key becomes, or why it is refused and what to set instead."""
    values: tuple[Any, ...] = ()
    """Those for which the row holds; all where it names none."""

    def shown(self) -> str:
        """A row of the table in docs/cluster.md."""
        values = ", ".join(dict.fromkeys(str(value) for value in self.values))
        keys = ", ".join(f"`{key}: {values}`" if values else f"`{key}`" for key in self.keys)
        return f"| {keys} | {self.fate} | {self.says} |"


def _row(keys: str, fate: str, says: str, values: tuple[Any, ...] = ()) -> Row:
    return Row(tuple(keys.split()), fate, says, values)


_PARALLEL = (
    "ranks share the samples of a step (data parallelism). Set: distributed_type: MULTI_GPU, or "
    "FSDP"
)
_SAGEMAKER = (
    f"SageMaker starts programs in its own way. Start {LAUNCH_NAME} on the machine itself; remove "
    "the key"
)
_DEEPSPEED = f"DeepSpeed replaces optimizer and loop, and {_PARALLEL}; remove deepspeed_config"
_FSDP1 = "FSDP 1 is not supported, FSDP 2 is. Set: fsdp_version: 2"
_OFFLOAD = (
    "weights and optimizer stay on the device: offloading was not tried. Set: "
    "fsdp_offload_params: false"
)
_BY_SIZE = (
    "weights are gathered block by block. Set: fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP; "
    "remove the key"
)
_MEGATRON = f"Megatron-LM replaces model, data and loop, and {_PARALLEL}; remove megatron_lm_config"
_SPLIT = (
    f"there is no tensor, context or sequence parallelism: {_PARALLEL}; remove parallelism_config"
)
_TPU = "ranks work on NVIDIA GPUs and on CPUs. Remove the key"
_OURS = f"{LAUNCH_NAME} names the program and its words. Remove the flag"
_FP8 = "there is no fp8. Set: precision=bf16 in the config; remove the key"

ROWS = (
    # What launch.sh takes.
    _row(
        "distributed_type",
        TAKEN,
        "data parallelism, by as many ranks as num_processes says",
        ("NO", "MULTI_CPU"),
    ),
    _row("distributed_type", TAKEN, "the same; refused where no GPU is visible", ("MULTI_GPU",)),
    _row("multi_gpu", TAKEN, f"several ranks; {LAUNCH_NAME} adds it"),
    _row(
        "num_processes",
        TAKEN,
        "the ranks of all machines together; -1: one per visible GPU; NPROC overrides it",
    ),
    _row("use_cpu cpu", TAKEN, "ranks on the CPU"),
    _row("gpu_ids", TAKEN, "CUDA_VISIBLE_DEVICES; one rank per GPU that is named"),
    _row(
        "num_machines machine_rank main_process_ip main_process_port",
        TAKEN,
        "where the machines meet",
    ),
    _row("rdzv_backend", TAKEN, "how the machines meet", ("static", "c10d")),
    _row("rdzv_backend", REFUSED, "only static and c10d were tried. Set: rdzv_backend: c10d"),
    _row("mixed_precision", TAKEN, "must be the config's precision, which decides", PRECISIONS),
    _row(
        "mixed_precision",
        REFUSED,
        "no such precision. Set: precision=bf16 in the config; mixed_precision: 'no'",
    ),
    _row("fp16", REFUSED, "belongs to the config. Set: precision=fp16 there; remove the key"),
    _row("enable_cpu_affinity", TAKEN, "accelerate binds each rank to the cores near its GPU"),
    _row("num_cpu_threads_per_process", TAKEN, "OMP_NUM_THREADS"),
    _row(
        "max_restarts monitor_interval rdzv_conf role log_dir tee quiet",
        TAKEN,
        "torchrun's; passed on",
    ),
    _row("distributed_type", TAKEN, "FSDP2: each rank keeps a part of the model", ("FSDP",)),
    _row("use_fsdp", TAKEN, "the same; fsdp_version must say 2"),
    _row("fsdp_version", TAKEN, "2", (2, "2")),
    _row(
        "fsdp_reshard_after_forward",
        TAKEN,
        "whether a block's weights are freed between its forward and backward pass",
        (True, False, "true", "false", "True", "False"),
    ),
    _row(
        "fsdp_transformer_layer_cls_to_wrap",
        TAKEN,
        "the blocks, by their class; unset: what nn.ModuleLists hold",
    ),
    _row("fsdp_auto_wrap_policy", TAKEN, "blocks, as above", ("TRANSFORMER_BASED_WRAP", "NO_WRAP")),
    # What changes nothing in a run.
    _row(
        "fsdp_state_dict_type fsdp_cpu_ram_efficient_loading fsdp_sync_module_states "
        "fsdp_use_orig_params fsdp_backward_prefetch fsdp_forward_prefetch",
        NO_EFFECT,
        "weights are drawn or read alike on every rank, divided block by block, and saved in a "
        "file per rank",
    ),
    _row(
        "compute_environment",
        NO_EFFECT,
        f"{LAUNCH_NAME} starts ranks on this machine",
        ("LOCAL_MACHINE",),
    ),
    _row(
        "same_network",
        NO_EFFECT,
        "machines meet at main_process_ip and main_process_port either way",
    ),
    _row("main_training_function", NO_EFFECT, "only TPUs start a function by its name"),
    _row("debug", NO_EFFECT, "checks accelerate's own collectives, which a run does not use"),
    # What belongs to the config of the run.
    _row("gradient_accumulation_steps", NO_EFFECT, "the batch belongs to the config", (1, "1")),
    _row(
        "gradient_accumulation_steps",
        REFUSED,
        "belongs to the config. Set: batch.accumulation_steps; remove the key",
    ),
    _row(
        "megatron_lm_num_micro_batches",
        REFUSED,
        "belongs to the config. Set: batch.accumulation_steps; remove the key",
    ),
    _row(
        "gradient_clipping megatron_lm_gradient_clipping",
        REFUSED,
        "belongs to the config. Set: optimizer.max_grad_norm; remove the key",
    ),
    _row(
        "fsdp_activation_checkpointing megatron_lm_recompute_activations",
        REFUSED,
        "belongs to the config. Set: memory.activation_checkpointing=true; remove the key",
    ),
    _row(
        "dynamo_config dynamo_backend dynamo_mode dynamo_use_fullgraph dynamo_use_dynamic "
        "dynamo_use_regional_compilation",
        REFUSED,
        "belongs to the config. Set: model.compile=true, or the name of a backend; remove the key",
    ),
    # Other engines.
    _row("fsdp_config", REFUSED, "accelerate has no such key in fsdp_config. Remove it"),
    _row("fsdp_version", REFUSED, _FSDP1),
    _row(
        "fsdp_reshard_after_forward",
        REFUSED,
        "FSDP 1's names. Set: fsdp_reshard_after_forward: true, or false",
    ),
    _row("fsdp_auto_wrap_policy", REFUSED, _BY_SIZE),
    _row("fsdp_min_num_params", REFUSED, _BY_SIZE),
    _row("fsdp_sharding_strategy", REFUSED, "FSDP 1's. Set: fsdp_version: 2; remove the key"),
    _row("fsdp_offload_params fsdp_activation_checkpointing_offload", REFUSED, _OFFLOAD),
    _row("distributed_type", REFUSED, _DEEPSPEED, ("DEEPSPEED",)),
    _row(
        "deepspeed_config use_deepspeed deepspeed_config_file zero_stage offload_optimizer_device "
        "offload_param_device offload_optimizer_nvme_path offload_param_nvme_path zero3_init_flag "
        "zero3_save_16bit_model deepspeed_hostfile deepspeed_exclusion_filter "
        "deepspeed_inclusion_filter deepspeed_multinode_launcher deepspeed_moe_layer_cls_names",
        REFUSED,
        _DEEPSPEED,
    ),
    _row("distributed_type", REFUSED, _MEGATRON, ("MEGATRON_LM",)),
    _row(
        "megatron_lm_config use_megatron_lm megatron_lm_tp_degree megatron_lm_use_custom_fsdp "
        "megatron_lm_no_load_optim megatron_lm_eod_mask_loss "
        "megatron_lm_overlap_cpu_optimizer_d2h_h2d megatron_lm_no_save_optim "
        "megatron_lm_optimizer_cpu_offload megatron_lm_use_precision_aware_optimizer "
        "megatron_lm_decoder_last_pipeline_num_layers megatron_lm_pp_degree "
        "megatron_lm_sequence_parallelism megatron_lm_use_distributed_optimizer "
        "megatron_lm_recompute_granularity megatron_lm_recompute_method "
        "megatron_lm_recompute_num_layers megatron_lm_attention_backend "
        "megatron_lm_expert_model_parallel_size megatron_lm_context_parallel_size "
        "megatron_lm_attention_dropout megatron_lm_hidden_dropout "
        "megatron_lm_attention_softmax_in_fp32 megatron_lm_expert_tensor_parallel_size "
        "megatron_lm_calculate_per_token_loss megatron_lm_use_rotary_position_embeddings",
        REFUSED,
        _MEGATRON,
    ),
    _row(
        "parallelism_config use_parallelism_config parallelism_config_dp_replicate_size "
        "parallelism_config_dp_shard_size parallelism_config_tp_size parallelism_config_cp_size "
        "parallelism_config_cp_backend parallelism_config_cp_comm_strategy "
        "parallelism_config_sp_size parallelism_config_sp_backend parallelism_config_sp_seq_length "
        "parallelism_config_sp_seq_length_is_variable parallelism_config_sp_attn_implementation",
        REFUSED,
        _SPLIT,
    ),
    _row(
        "fp8_config fp8_backend fp8_use_autocast_during_eval fp8_margin fp8_interval fp8_format "
        "fp8_amax_history_len fp8_amax_compute_algo fp8_override_linear_precision fp8_opt_level "
        "fp8_enable_fsdp_float8_all_gather fp8_pad_inner_dim",
        REFUSED,
        _FP8,
    ),
    # Other machines.
    _row(
        "distributed_type",
        REFUSED,
        "ranks work on NVIDIA GPUs and on CPUs. Set: distributed_type: MULTI_GPU",
    ),
    _row(
        "tpu tpu_cluster no_tpu_cluster tpu_name tpu_zone tpu_use_cluster tpu_use_sudo tpu_vm "
        "tpu_env vm env commands command_file downcast_bf16",
        REFUSED,
        _TPU,
    ),
    _row(
        "mpirun_config mpirun_hostfile",
        REFUSED,
        "torchrun starts the ranks, not mpirun. Remove the key",
    ),
    _row(
        "compute_environment ec2_instance_type iam_role_name image_uri profile region "
        "base_job_name pytorch_version transformers_version py_version sagemaker_inputs_file "
        "sagemaker_metrics_file additional_args aws_access_key_id aws_secret_access_key",
        REFUSED,
        _SAGEMAKER,
    ),
    _row(
        "config_file",
        REFUSED,
        f"it would replace the file that was read. Run: LAUNCHER=FILE before {LAUNCH}",
    ),
    _row("module no_python help", REFUSED, _OURS),
)

USUAL = {
    "compute_environment": "LOCAL_MACHINE",
    "same_network": True,
    "main_training_function": "main",
}
"""Written into every file."""

SECTIONS = {
    "fsdp_config": "fsdp_",
    "deepspeed_config": "",
    "megatron_lm_config": "megatron_lm_",
    "parallelism_config": "parallelism_config_",
    "fp8_config": "fp8_",
    "dynamo_config": "dynamo_",
    "mpirun_config": "mpirun_",
}
"""Sections of the file: the prefix that accelerate adds to their keys where it is missing."""

_SWITCHES = (
    "cpu multi_gpu tpu enable_cpu_affinity dynamo_use_fullgraph dynamo_use_dynamic "
    "dynamo_use_regional_compilation use_deepspeed use_fsdp use_parallelism_config use_megatron_lm "
    "same_network debug quiet module no_python help tpu_cluster no_tpu_cluster tpu_use_sudo "
    "downcast_bf16 fp8_use_autocast_during_eval"
)
SWITCHES = frozenset(_SWITCHES.split())
"""Flags without a value."""
_ONLY_FLAGS = (
    "multi_gpu cpu num_cpu_threads_per_process max_restarts monitor_interval rdzv_conf role "
    "log_dir tee quiet"
)
ONLY_FLAGS = frozenset(_ONLY_FLAGS.split())
ONLY_IN_FILE = frozenset(("distributed_type", "compute_environment", "use_cpu"))
SHORT = {"-m": "module", "-q": "quiet", "-h": "help", "-t": "tee"}
NUMBERS = frozenset(("num_processes", "num_machines", "machine_rank", "main_process_port"))
TRUE_OR_FALSE = frozenset(("use_cpu", "enable_cpu_affinity"))

VARIABLES = {
    "ACCELERATE_MIXED_PRECISION": "mixed_precision",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo_backend",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "ACCELERATE_USE_FSDP": "use_fsdp",
    "FSDP_VERSION": "fsdp_version",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing",
    "ACCELERATE_USE_DEEPSPEED": "use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "use_parallelism_config",
}
"""What accelerate's launcher sets for its ranks; a user may set them as well."""


def row_of(key: str, value: Any) -> Row | None:
    """None: accelerate has no such key."""
    for row in ROWS:
        if key in row.keys and (not row.values or value in row.values):
            return row
    return None


def asks_nothing(key: str, value: Any) -> bool:
    """Whether it is what `accelerate config` writes for an option that was not selected."""
    if value is None or value is False:  # a bare `no` is false in YAML
        return True
    return value in ("", "no", "NO", "false", "False", [], {}, [""]) or USUAL.get(key) == value
