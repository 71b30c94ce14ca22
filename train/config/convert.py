"""Settings to typed values: OmegaConf's structured conversion, key by key, errors in our words."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train.config.keys import DEFAULTS, KEYS, MISSING, SECTIONS, dotted, owner, parts, types_of
from train.config.merge import Settings
from train.config.problems import Problem, show
from train.config.recipe import Group
from train.config.schema import Config

_TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    list[int]: "a list of whole numbers",
    dict[int, int]: "a mapping of whole numbers, such as {0: 64, 20000: 128}",
    list[float]: "a list of numbers",
    list[str]: "a list of texts",
    list[Group]: "a list of {match: pattern, lr_multiplier: number, args: {...}}",
}


class Origins:
    """The layer that set a key; what no layer set is for the config file to state."""

    def __init__(self, settings: Settings, config: str) -> None:
        self._settings = settings
        self._config = config

    def __call__(self, key: str) -> str:
        if parts(key) in self._settings:
            return self._settings[parts(key)].origin
        below = [
            setting.origin
            for path, setting in self._settings.items()
            if dotted(path).startswith(f"{key}.")
        ]
        # Of several settings below a key the last one, which comes from the highest layer.
        return below[-1] if below else self._config


def convert(settings: Settings, origins: Origins) -> tuple[DictConfig, list[Problem]]:
    """The structured config, interpolations unresolved, and the values that have a wrong type.

    A key with such a value keeps its default.
    """
    config: DictConfig = OmegaConf.structured(Config)
    # OmegaConf makes each node of a frozen dataclass read-only.
    OmegaConf.set_readonly(config, False)
    for section in SECTIONS:
        OmegaConf.set_readonly(OmegaConf.select(config, section), False)
    problems = []
    # Key by key, so that one wrong value hides no other.
    for key, value in _nested(settings).items():
        wrong = _truth_for_text(key, value)
        if wrong is not None:
            problems.append(Problem(origins(wrong[0]), *wrong))
            continue
        try:
            # Merging a list makes a Group of each mapping in it.
            OmegaConf.update(config, key, value, merge=isinstance(value, list))
        except OmegaConfBaseException as error:
            # The error of a list's element names the element alone, without the key.
            full_key = str(error.full_key or key)
            shown = full_key if full_key.startswith(key) else key
            text = _wrong_type(key, full_key, value, error)
            problems.append(Problem(origins(shown), shown, text))
    return config, problems


def _nested(settings: Settings) -> dict[str, Any]:
    """One value per key of the schema; what is set below one (`model.args.hidden`) is nested."""
    values: dict[str, Any] = {}
    for path, setting in settings.items():
        key = owner(path)
        # null gives a key back its default. Below args it is a value like any other.
        if key is None or (setting.value is None and not key.endswith(".args")):
            continue
        *above, last = (key, *path[len(parts(key)) :])
        container: Any = values
        for part in above:
            container = container.setdefault(part, {})
        container[last] = setting.value
    return {key: DEFAULTS[key] if value is None else value for key, value in values.items()}


def _truth_for_text(key: str, value: Any) -> tuple[str, str] | None:
    """(key, what is wrong) where YAML made a truth value of a word such as `no`.

    OmegaConf would turn it into the text 'False'.
    """
    if isinstance(value, Mapping):
        # Below args any type may be meant: the target decides.
        if key.endswith(".args"):
            return None
        for name, item in value.items():
            if isinstance(item, bool):
                return f"{key}.{name}", _quote_it(item)
        return None
    # A key that takes both, such as model.compile, has no wrong word.
    takes_text = str in types_of(key) and bool not in types_of(key)
    if takes_text and isinstance(value, bool):
        return key, _quote_it(value)
    return None


def _quote_it(value: bool) -> str:
    if value:
        words = "`yes` and `on` are YAML for true: quote the word, as in 'yes'"
    else:
        words = "`no` and `off` are YAML for false: quote the word, as in 'no'"
    return f"got {show(value)}; {words}"


def _wrong_type(key: str, full_key: str, value: Any, error: OmegaConfBaseException) -> str:
    """`full_key`: that of the element of a list or mapping, where the error is about one."""
    takes = _takes(key)
    if full_key != key:
        return f"it takes {takes}: {str(error).splitlines()[0]}"
    text = f"got {show(value)}; it takes {takes}"
    # W&B's sweeps pass None as this text.
    if value == "None":
        return f"{text}. None is written null"
    # 1e3 is a float, and meant as a whole number.
    if isinstance(value, float) and value.is_integer() and int in types_of(key):
        return f"{text}. Write {key}={int(value)}"
    return text


def _takes(key: str) -> str:
    words = [_TYPE_WORDS.get(member, "a mapping {name: value}") for member in types_of(key)]
    return " or ".join(words)


def missing(settings: Settings, origins: Origins) -> list[Problem]:
    """What must be stated and is not: keys without a default, and what a file leaves as ???."""
    required = [parts(key) for key, default in DEFAULTS.items() if default == MISSING]
    unset = [path for path in required if path not in settings or settings[path].value is None]
    # ??? may also stand inside a list.
    left_open = [path for path, setting in settings.items() if repr(MISSING) in repr(setting.value)]
    keys = dict.fromkeys(dotted(path) for path in [*unset, *left_open])
    return [Problem(origins(key), key, f"must be stated. Add {key}=...") for key in keys]


def resolve_values(config: DictConfig, origins: Origins) -> tuple[dict[str, Any], list[Problem]]:
    """{key: value}, interpolations resolved, and those that cannot be resolved.

    A key with such an interpolation has its default; an argument with one is missing.
    """
    values = dict(DEFAULTS)
    problems = []
    for key in KEYS:
        try:
            # select resolves an interpolation, and raises where it leads nowhere.
            value = OmegaConf.select(config, key)
            values[key] = {} if isinstance(value, DictConfig) else _plain(value)
        except OmegaConfBaseException as error:
            problems.append(_unresolved(key, error, origins))
            continue
        if not isinstance(value, DictConfig):
            continue
        # One by one: an argument that cannot be resolved hides none of the others.
        for name in value:
            try:
                values[key][name] = _plain(value[name])
            except OmegaConfBaseException as error:
                problems.append(_unresolved(f"{key}.{name!s}", error, origins))
    return values, problems


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _unresolved(key: str, error: OmegaConfBaseException, origins: Origins) -> Problem:
    return Problem(origins(key), key, f"cannot be resolved: {str(error).splitlines()[0]}")
