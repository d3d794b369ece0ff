"""What a text must match, under every name that clients give it; over a connection, whole, streamed, in a batch."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from live import Server

from symboliclight.core.errors import InputError
from symboliclight.serve.forms import ANY_OBJECT, form_of

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["是", "no"]}}, "required": ["a"],
          "additionalProperties": False}
WRITTEN = ("json", json.dumps(SCHEMA))


@pytest.mark.parametrize(("body", "form"), [
    ({}, None), ({"response_format": {"type": "text"}}, None), ({"grammar": ""}, None), ({"guided_choice": []}, None),
    ({"response_format": {"type": "json_object"}}, ("json", ANY_OBJECT)),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, WRITTEN),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, WRITTEN),
    ({"guided_json": SCHEMA}, WRITTEN), ({"guided_json": json.dumps(SCHEMA)}, WRITTEN),
    ({"json_schema": SCHEMA}, WRITTEN),
    ({"structured_outputs": {"json": SCHEMA, "regex": None}}, WRITTEN),
    ({"structured_outputs": {"json_object": True}}, ("json", ANY_OBJECT)),
    ({"structured_outputs": {"choice": ["a"]}}, ("choice", '["a"]')),
    ({"guided_regex": "a+"}, ("regex", "a+")), ({"grammar": "start: x"}, ("grammar", "start: x")),
])
def test_each_server_has_its_own_names(body, form):
    assert form_of(body) == form


@pytest.mark.parametrize(("body", "message"), [
    ({"response_format": {"type": "xml"}}, "response_format must have a type"), ({"guided_json": "{"}, "guided_json"),
    ({"response_format": "json"}, "response_format must have a type"),
    ({"guided_regex": 5}, "guided_regex must be text"),
    ({"guided_choice": ["a", 5]}, "guided_choice must be a list"), ({"json_schema": [1]}, "json_schema must be"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"regex": "a", "json": SCHEMA}}, "structured_outputs: .* give one"),
    ({"guided_regex": "a", "grammar": "start: x"}, "give one of them"),
])
def test_what_is_no_form_is_refused_by_name(body, message):
    with pytest.raises(InputError, match=message):
        form_of(body)


@pytest.fixture(scope="module")
def server(small_checkpoint):
    pytest.importorskip("llguidance")
    server = Server("--model", str(small_checkpoint), "--precision", "float32", "--slots", "8", "--threads", "1")
    yield server
    assert server.stop()[0] == 0


def is_it(text):
    return json.loads(text) in ({"a": "是"}, {"a": "no"})


def test_json_by_a_schema_whole_and_streamed(server):
    body = {"prompt": "the", "seed": 3, "max_tokens": 60, "n": 3, "guided_json": SCHEMA}
    status, whole = server.ask("/v1/completions", body)
    assert status == 200
    texts = [choice["text"] for choice in whole["choices"]]
    assert all(is_it(text) for text in texts) and {c["finish_reason"] for c in whole["choices"]} == {"stop"}
    streamed = ["", "", ""]
    for chunk in server.stream("/v1/completions", body):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts


def test_a_chat_by_a_regular_expression(server):
    body = {"messages": [{"role": "user", "content": "hi"}], "seed": 1, "guided_regex": "(你好|hello), [a-z]{2}"}
    message = server.ask("/v1/chat/completions", body)[1]["choices"][0]["message"]
    assert re.fullmatch(body["guided_regex"], message["content"])


def test_neighbours_write_what_they_write_alone(server):
    plain = {"prompt": "the old", "seed": 5, "max_tokens": 40, "ignore_eos": True}
    alone = server.ask("/v1/completions", plain)[1]["choices"][0]["text"]
    formed = {"prompt": "the", "max_tokens": 60, "guided_json": SCHEMA}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda body: server.ask("/v1/completions", body)[1]["choices"][0]["text"],
                              [plain, formed, plain, formed]))
    assert found[0] == found[2] == alone and is_it(found[1]) and is_it(found[3])


def test_a_schema_that_cannot_be_followed_is_refused_before_anything_is_written(server):
    for form in ({"type": "nothing"}, {"type": "array", "uniqueItems": True}):
        status, answer = server.ask("/v1/completions", {"prompt": "a", "guided_json": form})
        assert status == 400 and answer["error"]["message"].startswith("json: ")
    assert server.running() == 0


def test_a_text_that_is_cut_off_is_said_to_be(server):
    body = {"prompt": "a", "max_tokens": 5, "guided_regex": "[a-z]{300}"}
    assert server.ask("/v1/completions", body)[1]["choices"][0]["finish_reason"] == "length"
