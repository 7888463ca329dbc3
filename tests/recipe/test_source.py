"""YAML text, overrides and interpolation: what a recipe's author wrote, before it means anything."""

import math

import pytest

from reuse_algos.recipe.interpolation import BROKEN, resolve
from reuse_algos.recipe.source import apply_overrides, parse_yaml, read_text
from reuse_algos.sections import Faults


def parse(text):
    faults = Faults("x.yaml")
    return parse_yaml(text, faults), list(faults)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("true", True),
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("17", 17),
        ("1_000", 1000),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0.5dur", "0.5dur"),
        ("~", None),
        ("", None),
        ("'17'", "17"),
        ("!!str 17", "17"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    assert parse(f"a: {text}") == ({"a": value}, [])


def test_anchors_and_merge_keys_work_and_do_not_share_objects():
    values, faults = parse("a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x")
    assert (values, faults) == ({"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": {"b": 1}}, [])
    apply_overrides(values, ["a.b=5"], Faults("x.yaml"))
    assert values["e"] == {"b": 1}


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("a: 1\na: 3", ["a: given twice (lines 1 and 2). Keep one"]),
        ("b: {c: 1, c: 2}\nb: 3", ["b.c: given twice (line 1). Keep one", "b: given twice (lines 1 and 2). Keep one"]),
        ("1: x", ["the key on line 1 (1) is not text. Put it in quotes"]),
        ("? [a]\n: x", ["the key on line 1 (a list or mapping) is not text. Put it in quotes"]),
        ("a: &x [*x]", ["a.0: an anchor that contains itself"]),
        ("a: !!python/name:os.getcwd x", ["a: the tag !!python/name:os.getcwd is not allowed. Write plain values"]),
        ("a: !!timestamp 2001-01-01", ["a: the tag !!timestamp is not allowed. Write plain values"]),
        ("a: [1", ["line 1, column 6: not valid YAML: expected ',' or ']', but got '<stream end>'"]),
        ("a: 1\n---\nb: 2", ["line 2, column 1: not valid YAML: but found another document"]),
        ("a: !!int x", ["not valid YAML: invalid literal for int() with base 10: 'x'"]),
    ],
)  # fmt: skip
def test_faults_of_the_text(text, faults):
    assert parse(text)[1] == faults


def test_control_characters_and_deep_nesting_are_faults_not_crashes():
    assert parse("a: \x00")[1][0].startswith("not valid YAML: unacceptable character")
    assert parse("a: " + "[" * 20_000)[1] == ["not valid YAML: nested too deeply"]


def test_exponential_anchors_are_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert parse("\n".join(lines))[1] == ["has more than 100000 values once its anchors are written out"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "baseline.yaml").write_text("a: 1")
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    for name, what in (
        ("baselin.yaml", f"there is no such file. Did you mean '{tmp_path / 'baseline.yaml'}'"),
        ("latin.yaml", "is not UTF-8 text"),
        ("", "cannot be read: Is a directory"),
    ):
        faults = Faults("x.yaml")
        assert read_text(tmp_path / name, faults) is None
        assert next(iter(faults)).startswith(what)


def test_overrides_set_typed_values_and_make_sections():
    values = {"a": 1, "b": {"c": 2}, "on": True, "empty": None, "list": [1, {"x": 2}]}
    faults = Faults("x.yaml")
    overrides = [
        "a=0.1",
        "b={d: 3}",
        "on.k=[1, y]",
        "empty.k=null",
        "list.1.x=9",
        "new.deep.key=1e-3",
        "text=a=b",
        "a=5",
    ]
    apply_overrides(values, overrides, faults)
    assert list(faults) == []
    assert values == {
        "a": 5,
        "b": {"d": 3},
        "on": {"k": [1, "y"]},
        "empty": {"k": None},
        "list": [1, {"x": 9}],
        "new": {"deep": {"key": 1e-3}},
        "text": "a=b",
    }


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("seed", "'seed': is not a key=value override. Write for example optimizer.lr=0.05"),
        ("=3", "'=3': is not a key=value override. Write for example optimizer.lr=0.05"),
        ("a..b=3", "'a..b=3': is not a key=value override. Write for example optimizer.lr=0.05"),
        ("a b=3", "'a b=3': is not a key=value override. Write for example optimizer.lr=0.05"),
        ("a.b=3", "'a.b=3': a is 1, which has nothing inside it"),
        ("list.7=3", "'list.7=3': list is a list of 1, and '7' is not a position in it"),
        ("callbacks.x=null", "'callbacks.x=null': null over an entry with options: write false to leave it out, or "
         "{} and its options to set them again"),
        ("a={x: 1, x: 2}", "'a={x: 1, x: 2}': the value is wrong: x: given twice (line 1). Keep one"),
    ],
)  # fmt: skip
def test_faults_of_overrides(override, fault):
    faults = Faults("x.yaml")
    values = {"a": 1, "list": [0], "callbacks": {"x": {"k": 1}}}
    apply_overrides(values, [override], faults)
    assert list(faults) == [fault]
    assert values["callbacks"] == {"x": {"k": 1}}


def test_interpolation_of_keys_and_environment(monkeypatch):
    monkeypatch.setenv("RECIPE_TOKEN", "secret")
    raw = {
        "seed": 17,
        "name": "run-${seed}",
        "again": "${name}",
        "section": {"k": [1, "${seed}"]},
        "copy": "${section}",
        "token": "${oc.env:RECIPE_TOKEN}",
        "passed_on": "x-${token}",
        "default": "${oc.env:RECIPE_UNSET,fallback}",
        "decoded": "${oc.decode:'[1, 2]'}",
        "plain": r"\${seed}",
    }
    faults = Faults("x.yaml")
    resolved = resolve(raw, faults)
    assert list(faults) == []
    assert resolved.values == {
        "seed": 17,
        "name": "run-17",
        "again": "run-17",
        "section": {"k": [1, 17]},
        "copy": {"k": [1, 17]},
        "token": "secret",
        "passed_on": "x-secret",
        "default": "fallback",
        "decoded": [1, 2],
        "plain": "${seed}",
    }
    assert "secret" not in repr(resolved.shown)
    assert resolved.shown["passed_on"] == "x-${oc.env:RECIPE_TOKEN}"


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ({"x": r"\${oc.env:TOKEN}"}, {"x": "${oc.env:TOKEN}"}),
        ({"x": r"a\\${oc.env:TOKEN}"}, {"x": r"a\\${oc.env:TOKEN}"}),
        ({"x": r"\${oc.env:TOKEN}", "y": "${oc.decode:${x}}"}, {"x": "${oc.env:TOKEN}", "y": "${oc.decode:${x}}"}),
        ({"y": "${oc.decode:${oc.env:TOKEN}}"}, {"y": "${oc.decode:${oc.env:TOKEN}}"}),
        ({"y": "${oc.select:no, ${oc.env:TOKEN}}"}, {"y": "${oc.select:no, ${oc.env:TOKEN}}"}),
    ],
)
def test_no_way_of_writing_shows_the_environment(monkeypatch, raw, seen):
    monkeypatch.setenv("TOKEN", "secret")
    faults = Faults("x.yaml")
    assert resolve(raw, faults).shown == seen
    assert list(faults) == []


@pytest.mark.parametrize("text", ["${oc.${y}:TOKEN}", "${${x}.env:TOKEN}", "a ${oc.decode:${oc.${y}:TOKEN}}"])
def test_names_of_resolvers_are_literal(monkeypatch, text):
    monkeypatch.setenv("TOKEN", "secret")
    faults = Faults("x.yaml")
    resolved = resolve({"x": "oc", "y": "env", "z": text}, faults)
    assert resolved.values["z"] is BROKEN
    assert resolved.shown["z"] is BROKEN
    (fault,) = faults
    assert fault.startswith("z: a computed name cannot be used")


def test_all_interpolation_faults_at_once(monkeypatch):
    monkeypatch.delenv("RECIPE_UNSET", raising=False)
    raw = {
        "loop": "${loop}",
        "parent": {"child": "${parent}"},
        "nowhere": "${seeed}",
        "unset": "${oc.env:RECIPE_UNSET}",
        "custom": "${now:%Y}",
        "computed": "${${nowhere}:x}",
        "open": "a ${",
        "todo": "???",
        "fine": "${oc.env:RECIPE_UNSET,ok}",
    }
    faults = Faults("x.yaml")
    resolved = resolve(raw, faults)
    assert sorted(faults) == [
        "computed: a computed name cannot be used in ${...}. Allowed are other keys and oc.env, oc.decode, oc.select",
        "custom: 'now' cannot be used in ${...}. Allowed are other keys and oc.env, oc.decode, oc.select",
        "loop: the ${...} refers to itself",
        "nowhere: there is no key 'seeed' for ${seeed} to take its value from",
        "open: 'a ${' is not a well-formed ${...}. Write \\${ for a plain ${",
        "parent.child: the ${...} refers to itself",
        "todo: missing (the recipe has ??? here). Give it a value",
        "unset: the environment variable RECIPE_UNSET is not set. Set it, or write ${oc.env:RECIPE_UNSET,default}",
    ]
    assert resolved.values["loop"] is BROKEN
    assert resolved.values["fine"] == "ok"
