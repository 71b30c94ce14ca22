"""Settings to typed values: OmegaConf's structured conversion, key by key, its errors
in our words.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train.config.keys import DEFAULTS, MISSING, SECTIONS, TYPES, dotted, owner, parts, types_of
from train.config.merge import Settings
from train.config.problems import Problem, show
from train.config.recipe import Group
from train.config.schema import Config

_WORDS = {
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
    """Which layer a key comes from; what no layer set is the config file's to state."""

    def __init__(self, settings: Settings, config: str) -> None:
        self._settings, self._config = settings, config

    def __call__(self, key: str) -> str:
        if parts(key) in self._settings:
            return self._settings[parts(key)].origin
        below = [
            setting.origin
            for path, setting in self._settings.items()
            if dotted(path).startswith(f"{key}.")
        ]
        return below[-1] if below else self._config


def convert(settings: Settings, origins: Origins) -> tuple[DictConfig, list[Problem]]:
    """The structured config, interpolations unresolved; a key whose value does not fit keeps its
    default.
    """
    config: DictConfig = OmegaConf.structured(Config)
    for section in ("", *SECTIONS):  # a frozen dataclass is read-only at every node
        OmegaConf.set_readonly(OmegaConf.select(config, section) if section else config, False)
    problems = []
    for key, value in _nested(settings).items():
        wrong = _false_text(key, value)
        try:
            if wrong is None:
                # makes a Group of a mapping
                OmegaConf.update(config, key, value, merge=isinstance(value, list))
                continue
        except OmegaConfBaseException as error:
            # of an element of a list: the element's own key alone
            place = str(error.full_key or key)
            wrong = (place if place.startswith(key) else key, _misfit(key, place, value, error))
        problems.append(Problem(origins(wrong[0]), *wrong))
    return config, problems


def _nested(settings: Settings) -> dict[str, Any]:
    """One value per key of the schema; what is set below one (`model.args.hidden`) becomes a
    mapping.
    """
    values: dict[str, Any] = {}
    for path, setting in settings.items():
        key = owner(path)
        if key is None or (setting.value is None and not key.endswith(".args")):
            continue
        *above, last = (key, *path[len(parts(key)) :])
        place: Any = values
        for part in above:
            place = place.setdefault(part, {})
        place[last] = setting.value
    return {key: DEFAULTS[key] if value is None else value for key, value in values.items()}


def _false_text(key: str, value: Any) -> tuple[str, str] | None:
    """(key, text) where YAML made a truth value of a word: OmegaConf would make the text 'False' of
    it.
    """
    if isinstance(value, Mapping) and not key.endswith(".args"):
        return next(
            (wrong for name in value if (wrong := _bool_text(f"{key}.{name}", value[name]))), None
        )
    takes_text = str in types_of(key) and bool not in types_of(key)
    return _bool_text(key, value) if takes_text else None


def _bool_text(key: str, value: Any) -> tuple[str, str] | None:
    if not isinstance(value, bool):
        return None
    word, others = ("yes", "`yes` and `on`") if value else ("no", "`no` and `off`")
    return (
        key,
        f"got {show(value)}; {others} are YAML for {show(value)}: quote the word, as in '{word}'",
    )


def _misfit(key: str, place: str, value: Any, error: OmegaConfBaseException) -> str:
    if place != key:
        return f"it takes {_takes(key)}: {str(error).splitlines()[0]}"
    text = f"got {show(value)}; it takes {_takes(key)}"
    if value == "None":
        return f"{text}. None is written null"
    if isinstance(value, float) and value.is_integer() and int in types_of(key):
        return f"{text}. Write {key}={int(value)}"
    return text


def _takes(key: str) -> str:
    return " or ".join(_WORDS.get(member, "a mapping {name: value}") for member in types_of(key))


def missing(settings: Settings, origins: Origins) -> list[Problem]:
    """What must be stated and is not: keys without a default, and what a file leaves
    open as ???.
    """
    left = [path for path, setting in settings.items() if repr(MISSING) in repr(setting.value)]
    required = [parts(key) for key, default in DEFAULTS.items() if default == MISSING]
    unset = [path for path in required if path not in settings or settings[path].value is None]
    return [
        Problem(origins(dotted(path)), dotted(path), f"must be stated. Add {dotted(path)}=...")
        for path in dict.fromkeys([*unset, *left])
    ]


def resolve_values(config: DictConfig, origins: Origins) -> tuple[dict[str, Any], list[Problem]]:
    """{key: value}, interpolations resolved. What cannot be resolved is left out, or has its
    default.
    """
    values, problems = dict(DEFAULTS), []
    for key in TYPES:
        try:
            value = OmegaConf.select(config, key)
            values[key] = {} if isinstance(value, DictConfig) else _plain(value)
        except OmegaConfBaseException as error:
            problems.append(_unresolved(key, error, origins))
            continue
        for name in list(value) if isinstance(value, DictConfig) else ():
            try:
                values[key][name] = _plain(value[name])
            except OmegaConfBaseException as error:
                problems.append(_unresolved(f"{key}.{name}", error, origins))
    return values, problems


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _unresolved(key: str, error: OmegaConfBaseException, origins: Origins) -> Problem:
    return Problem(origins(key), key, f"cannot be resolved: {str(error).splitlines()[0]}")
