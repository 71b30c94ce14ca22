"""Layers over layers: what a later one replaces, keeps and unsets."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config.keys import KeyPath, dotted
from train.config.merge import ALTERNATIVES, BATCH, Layer, flatten, merge


def merged(*layers: dict[str, Any], edits: tuple[tuple[KeyPath, Any], ...] = ()) -> dict[str, Any]:
    """Merges nested mappings, lowest first; `edits` belong to the last."""
    built = [Layer(f"layer {number}", flatten(values)) for number, values in enumerate(layers)]
    built[-1] = Layer(built[-1].name, built[-1].values, edits)
    settings, problems = merge(built)
    assert problems == []
    return {dotted(path): setting.value for path, setting in settings.items()}


@pytest.mark.parametrize(
    ("lower", "later", "left"),
    [
        ({"duration": {"epochs": 20}}, {"duration": {"steps": 5}}, {"duration.steps": 5}),
        (
            {"schedule": {"name": "cosine", "warmup_fraction": 0.1}},
            {"schedule": {"warmup_samples": 9}},
            {"schedule.name": "cosine", "schedule.warmup_samples": 9},
        ),
        (
            {"evaluate": {"every_steps": 1, "at_start": True}},
            {"evaluate": {"every_samples": 2}},
            {"evaluate.at_start": True, "evaluate.every_samples": 2},
        ),
        (
            {"duration": {"epochs": 20}},
            {"duration": {"steps": None}},
            {"duration.epochs": 20, "duration.steps": None},
        ),
        ({"duration": {"epochs": 20}}, {"seed": 1}, {"duration.epochs": 20, "seed": 1}),
    ],
)
def test_a_choice_among_alternatives_replaces_the_earlier_one(
    lower: dict[str, Any], later: dict[str, Any], left: dict[str, Any]
) -> None:
    assert merged(lower, later) == left


E_, M, A, T = "effective", "micro", "accumulation_steps", "micro_tokens"


@pytest.mark.parametrize(
    ("lower", "later", "left"),
    [
        ({E_: 128, A: 4}, {M: 8}, {E_: 128, M: 8}),
        ({E_: 128, M: 8}, {A: 4}, {E_: 128, A: 4}),
        ({M: 8, A: 4}, {E_: 128}, {E_: 128, M: 8}),
        ({E_: 128, M: 8}, {E_: 64}, {E_: 64, M: 8}),
        ({E_: 128, M: 8, A: 4}, {M: 2}, {E_: 128, M: 2}),
        ({E_: 128, M: "all", A: 4}, {E_: 64}, {E_: 64, A: 4}),
        ({E_: 128, M: 8}, {E_: 64, A: 4}, {E_: 64, A: 4}),
        ({E_: 128, M: 8}, {E_: None, A: 4}, {M: 8, A: 4}),
        ({E_: 128}, {M: 8}, {E_: 128, M: 8}),
        ({}, {E_: 1, M: 2, A: 3}, {E_: 1, M: 2, A: 3}),
        ({E_: 32, M: 8}, {T: 640}, {E_: 32, T: 640}),
        ({E_: 32, T: 640}, {M: 8}, {E_: 32, M: 8}),
        ({E_: 32, T: 640}, {A: 4}, {E_: 32, A: 4}),
        ({E_: 32, T: 640}, {E_: 64}, {E_: 64, T: 640}),
    ],
)
def test_two_of_three_batch_numbers_survive(
    lower: dict[str, Any], later: dict[str, Any], left: dict[str, Any]
) -> None:
    assert merged({"batch": lower}, {"batch": later}) == {
        f"batch.{key}": value for key, value in left.items()
    }


@pytest.mark.parametrize("section", ["model", "task", "optimizer", "data"])
def test_a_changed_target_drops_the_arguments_of_the_old_one(section: str) -> None:
    # given
    name = "source" if section == "data" else "target"
    lower = {section: {name: "old", "args": {"a": 1, "deep": {"b": 2}}}}
    # when, then: another target starts afresh, the same one keeps them
    other = merged(lower, {section: {name: "new", "args": {"c": 3}}})
    assert other == {f"{section}.{name}": "new", f"{section}.args.c": 3}
    same = merged(lower, {section: {name: "old", "args": {"c": 3}}})
    assert same[f"{section}.args.a"] == 1
    assert same[f"{section}.args.deep.b"] == 2


def test_arguments_of_the_default_target_go_when_a_later_layer_names_another() -> None:
    lower = {"optimizer": {"args": {"weight_decay": 0.1}}}
    assert merged(lower, {"optimizer": {"target": "sgd"}}) == {"optimizer.target": "sgd"}
    assert "optimizer.args.weight_decay" in merged(lower, {"optimizer": {"target": "adamw"}})


def test_arguments_without_a_target_wait_for_one() -> None:
    lower = {"model": {"args": {"a": 1}}}
    assert merged(lower, {"model": "name"}) == {"model.args.a": 1, "model.target": "name"}


def test_an_empty_mapping_removes_nothing() -> None:
    lower = {"model": {"args": {"a": 1}}}
    assert merged(lower, {"model": {"args": {}}}) == {"model.args.a": 1}


def test_a_changed_source_keeps_the_columns() -> None:
    lower = {"data": {"source": "old", "columns": {"inputs": "image"}}}
    assert merged(lower, {"data": {"source": "new"}})["data.columns.inputs"] == "image"


def test_mappings_merge_by_key_and_lists_replace() -> None:
    lower = {"model": {"args": {"hidden": [1, 2, 3], "outputs": 10}}}
    later = {"model": {"args": {"hidden": [4]}}}
    assert merged(lower, later) == {"model.args.hidden": [4], "model.args.outputs": 10}


@pytest.mark.parametrize("section", ["model", "task", "optimizer"])
def test_a_bare_string_is_the_target(section: str) -> None:
    assert merged({section: "name"}) == {f"{section}.target": "name"}
    assert (
        merged({section: {"target": "name", "args": {"a": 1}}}, {section: "name"})[
            f"{section}.args.a"
        ]
        == 1
    )


def test_other_sections_have_no_short_form() -> None:
    assert merged({"schedule": "cosine", "data": "digits"}) == {
        "schedule": "cosine",
        "data": "digits",
    }


def test_null_unsets_what_lower_layers_gave() -> None:
    lower = {
        "optimizer": {"max_grad_norm": 1.0},
        "model": {"args": {"a": 1}},
        "schedule": {"name": "cosine"},
    }
    later = {"optimizer": {"max_grad_norm": None}, "model": {"args": {"a": None}}, "schedule": None}
    assert merged(lower, later) == {}


def test_null_is_a_value_where_nothing_lies_below() -> None:
    assert merged({"model": {"args": {"a": None}}}) == {"model.args.a": None}


def test_an_element_of_a_list_is_set_by_index() -> None:
    # given
    lower = {"model": {"args": {"hidden": [1, 2], "blocks": [{"width": 3}]}}}
    edits = ((("model", "args", "hidden", 0), 9), (("model", "args", "blocks", "0", "width"), 4))
    # when
    after = merged(lower, {"seed": 1}, edits=edits)
    # then: the lower layer itself is left alone
    assert after["model.args.hidden"] == [9, 2]
    assert after["model.args.blocks"] == [{"width": 4}]
    assert lower["model"]["args"]["hidden"] == [1, 2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("model", "args", "hidden", 2), "there is no element 2, only 2"),
        (("model", "args", "other", 0), "there is no list in the layers below"),
    ],
)
def test_an_index_without_an_element_is_refused(path: KeyPath, message: str) -> None:
    layers = [
        Layer("a.yaml", flatten({"model": {"args": {"hidden": [1, 2]}}})),
        Layer("b", {}, [(path, 7)]),
    ]
    _, problems = merge(layers)
    assert [problem.key for problem in problems] == [dotted(path)]
    assert message in problems[0].text
    assert "got 7" in problems[0].text


def test_a_setting_remembers_the_layer_it_came_from() -> None:
    layers = [Layer("low", flatten({"seed": 1, "name": "a"})), Layer("high", flatten({"seed": 2}))]
    settings, _ = merge(layers)
    assert {dotted(path): setting.origin for path, setting in settings.items()} == {
        "name": "low",
        "seed": "high",
    }


_numbers = st.one_of(st.none(), st.integers(1, 9))
_keys = [*BATCH, *(key for group in ALTERNATIVES for key in group), "seed", "model.args.x"]
_layers = st.lists(
    st.dictionaries(st.sampled_from([tuple(key.split(".")) for key in _keys]), _numbers), max_size=4
)


@given(_layers)
def test_any_layers_leave_at_most_one_alternative_and_two_batch_numbers_of_different_layers(
    values: list[dict[KeyPath, Any]],
) -> None:
    settings, _ = merge([Layer(str(number), layer) for number, layer in enumerate(values)])
    stated = {
        dotted(path): item.origin for path, item in settings.items() if item.value is not None
    }
    for group in ALTERNATIVES:
        assert len({stated[key] for key in group if key in stated}) <= 1
    batch = [stated[key] for key in BATCH if key in stated]
    assert len(batch) <= 2 or len(set(batch)) == 1


@given(_layers)
def test_the_last_layer_always_gets_its_way(values: list[dict[KeyPath, Any]]) -> None:
    settings, _ = merge([Layer(str(number), layer) for number, layer in enumerate(values)])
    for path, value in (values[-1] if values else {}).items():
        assert (settings[path].value if path in settings else None) == value


@given(_layers)
def test_merging_a_layer_twice_changes_nothing(values: list[dict[KeyPath, Any]]) -> None:
    layers = [Layer(str(number), layer) for number, layer in enumerate(values)]
    once, _ = merge(layers)
    twice, _ = merge([*layers, *layers[-1:]])
    stated = [
        {path: item.value for path, item in found.items() if item.value is not None}
        for found in (once, twice)
    ]
    assert stated[0] == stated[1]
