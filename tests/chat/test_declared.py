"""Values are held to what the tools declare, and no declaration can stop the parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.chat import Fault, parse
from baleen.chat.declared import allows_strings, fits
from baleen.chat.markup import CALLS_CLOSE, CALLS_OPEN, DSML, EOS


def read(value, kind, schema, key="x", **parameters):
    """The turn that gives `value` to a tool whose parameter is of `schema`."""
    tool = {"function": {"name": "f", "parameters": {"properties": {"x": schema}, **parameters}}}
    parameter = f'<{DSML}parameter name="{key}" string="{kind}">{value}</{DSML}parameter>'
    body = f'<{DSML}invoke name="f">\n{parameter}\n</{DSML}invoke>'
    return parse(f"\n\n{CALLS_OPEN}\n{body}\n{CALLS_CLOSE}{EOS}", False, [tool])


NUMBER_OR_NULL = {"anyOf": [{"type": "number"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("value", "kind", "schema", "meant"),
    [
        ("5", "false", {"type": "integer"}, 5),
        ("5", "false", {"type": "number"}, 5),
        ("5.0", "false", {"type": "integer"}, 5.0),
        ("null", "false", {"type": ["string", "null"]}, None),
        ("a", "true", {"type": ["string", "null"]}, "a"),
        ('"a"', "false", {"type": "string"}, "a"),
        ("null", "false", NUMBER_OR_NULL, None),
        ("a", "true", {"enum": ["a", 1]}, "a"),
        ("1", "false", {"enum": ["a", 1]}, 1),
        ("true", "false", {"const": True}, True),
        ("[1]", "false", {"type": "array", "items": {"type": "string"}}, [1]),
        ("5", "true", {}, "5"),
        ("5", "false", {}, 5),
        ("5", "true", {"type": "no such type"}, "5"),
        ("5", "false", "no schema", 5),
    ],
)
def test_a_value_of_the_declared_type_is_no_fault(value, kind, schema, meant):
    parsed = read(value, kind, schema)
    assert parsed.tool_calls[0].function.parsed() == {"x": meant}
    assert parsed.faults == ()


@pytest.mark.parametrize(
    ("value", "kind", "schema", "meant"),
    [
        ("5", "true", {"type": "integer"}, 5),
        ("five", "true", {"type": "integer"}, "five"),
        ("true", "true", {"type": "integer"}, "true"),
        ("[1]", "true", {"type": "array"}, [1]),
        ("5.5", "false", {"type": "integer"}, 5.5),
        ("true", "false", {"type": "number"}, True),
        ("5", "false", {"type": "string"}, "5"),
        ("[1]", "false", {"type": "object"}, [1]),
        ("1", "true", {"enum": ["a", 1]}, "1"),
        ("true", "false", {"const": 1}, True),
        ("a", "true", {"type": "string", "enum": ["b"]}, "a"),
        ("a", "true", NUMBER_OR_NULL, "a"),
        ("null", "true", NUMBER_OR_NULL, None),
    ],
)
def test_a_value_of_another_type_is_read_as_the_declared_one_where_it_can_be(value, kind, schema, meant):
    parsed = read(value, kind, schema)
    assert parsed.tool_calls[0].function.parsed() == {"x": meant}
    assert parsed.faults == (Fault.WRONG_TYPE,)


def test_a_value_that_is_not_json_is_of_the_wrong_type_only_where_no_string_may_stand():
    assert read("one", "false", {"type": "string"}).faults == (Fault.INVALID_JSON,)
    assert read("one", "false", {"type": "integer"}).faults == (Fault.INVALID_JSON, Fault.WRONG_TYPE)


def test_a_parameter_that_a_closed_tool_does_not_declare_is_a_fault():
    for rules, faults in (
        ({"additionalProperties": False}, (Fault.UNKNOWN_PARAMETER,)),
        ({"additionalProperties": {}}, ()),
        ({"additionalProperties": False, "patternProperties": {"^y": {}}}, ()),
        ({}, ()),
    ):
        parsed = read("1", "false", {}, key="y", **rules)
        assert parsed.tool_calls[0].function.parsed() == {"y": 1}
        assert parsed.faults == faults


def test_a_required_parameter_that_is_missing_is_a_fault():
    assert read("1", "false", {}, required=["x"]).faults == ()
    assert read("1", "false", {}, required=["x", "y"]).faults == (Fault.MISSING_PARAMETER,)


def test_faults_of_a_call_that_is_not_made_do_not_count():
    tool = {"function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}, "required": ["y"]}}}
    torn = f'<{DSML}invoke name="f"><{DSML}parameter name="x" string="true">a</{DSML}parameter>'
    parsed = parse(f"\n\n{CALLS_OPEN}\n{torn}\n{CALLS_CLOSE}{EOS}", False, [tool])
    assert parsed.faults == (Fault.TRUNCATED_CALL, Fault.MALFORMED_CALL)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.sampled_from(["", "string", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "enum", "const", "anyOf", "oneOf", "k"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON, JSON)
def test_no_schema_raises_and_where_strings_may_stand_they_fit(value, schema):
    fits(value, schema)
    if isinstance(value, str) and fits(value, schema):
        assert allows_strings(schema)


@given(JSON, st.sampled_from(["1", "a", "[", "null"]), st.sampled_from(["true", "false"]))
def test_without_the_fault_every_value_fits(schema, value, kind):
    parsed = read(value, kind, schema)
    assert Fault.WRONG_TYPE in parsed.faults or fits(parsed.tool_calls[0].function.parsed()["x"], schema)


def test_a_schema_nested_without_end_declares_nothing():
    schema = {"type": "integer"}
    for _ in range(5_000):
        schema = {"anyOf": [schema]}
    assert fits("a", schema)
    assert allows_strings(schema)


@pytest.mark.parametrize("parameters", [None, "x", [], {"properties": []}, {"required": "x"}, {"required": [1]}])
def test_parameters_that_are_no_schema_declare_nothing(parameters):
    tool = {"function": {"name": "f", "parameters": parameters}}
    body = f'<{DSML}invoke name="f">\n<{DSML}parameter name="x" string="true">1</{DSML}parameter>\n</{DSML}invoke>'
    parsed = parse(f"\n\n{CALLS_OPEN}\n{body}\n{CALLS_CLOSE}{EOS}", False, [tool])
    assert parsed.faults == ()
