"""FSDP2 as the launcher file and the flags ask for it, in the variables by which accelerate tells
its ranks.
"""

from train.launching.arguments import Arguments
from train.launching.launcher_check import asks_for_sharding, of_file, of_flags
from train.launching.launcher_file import LauncherFile

VARIABLES = {
    "fsdp_version": "FSDP_VERSION",
    "fsdp_reshard_after_forward": "FSDP_RESHARD_AFTER_FORWARD",
    "fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
}


def is_sharding_flag(key: str) -> bool:
    """Such flags are not passed on: beside them accelerate takes no --multi_gpu, and on a CPU it
    drops them.
    """
    return key == "use_fsdp" or key.startswith("fsdp_")


def sharding_variables(arguments: Arguments, file: LauncherFile) -> dict[str, str]:
    """Empty where FSDP is not asked for. A flag comes before the file."""
    asked = [*of_file(file.values), *of_flags(arguments.flags)]
    if not any(asks_for_sharding(each) for each in asked):
        return {}
    variables = {"ACCELERATE_USE_FSDP": "true"}
    for each in asked:
        if each.key in VARIABLES and each.value is not None:
            value = ",".join(each.value) if isinstance(each.value, list) else str(each.value)
            variables[VARIABLES[each.key]] = value
    return variables
