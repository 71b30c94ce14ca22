"""FSDP2 as launcher file and flags ask for it, as the variables that accelerate's ranks read."""

from train.launching.arguments import Arguments
from train.launching.launcher_check import asks_for_sharding, of_file, of_flags
from train.launching.launcher_file import LauncherFile

VARIABLES = {
    "fsdp_version": "FSDP_VERSION",
    "fsdp_reshard_after_forward": "FSDP_RESHARD_AFTER_FORWARD",
    "fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
}


def is_sharding_flag(key: str) -> bool:
    """Not passed on: beside them accelerate accepts no --multi_gpu, and on a CPU drops them."""
    return key == "use_fsdp" or key.startswith("fsdp_")


def sharding_variables(arguments: Arguments, file: LauncherFile) -> dict[str, str]:
    """Empty where FSDP is not asked for. A flag comes before the file."""
    # The file first: a flag then takes its place in `variables`.
    settings = [*of_file(file.values), *of_flags(arguments.flags)]
    if not any(asks_for_sharding(each) for each in settings):
        return {}
    variables = {"ACCELERATE_USE_FSDP": "true"}
    for each in settings:
        if each.key not in VARIABLES or each.value is None:
            continue
        values = each.value if isinstance(each.value, list) else [str(each.value)]
        variables[VARIABLES[each.key]] = ",".join(values)
    return variables
