"""`/v1/responses` beside a chat: the same text, in the shape that the openai client reads."""

import pytest
from live import Server

from symboliclight.core.errors import InputError
from symboliclight.serve.responses import to_chat

SAID = [{"role": "user", "content": "the old"}, {"role": "assistant", "content": "river"},
        {"role": "user", "content": "?"}]
HOW = {"seed": 3, "temperature": 0.9, "top_k": 20}


@pytest.fixture(scope="module")
def server(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--precision", "float32", "--threads", "1", "--turns")
    yield server
    assert server.stop()[0] == 0


@pytest.mark.parametrize(("asked", "messages"), [
    ({"input": "the old"}, SAID[:1]), ({"input": SAID}, SAID),
    ({"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the old"}]}]},
     SAID[:1]),
    ({"input": "?", "instructions": "be short"}, [{"role": "system", "content": "be short"}, SAID[2]])])
def test_it_writes_what_a_chat_writes(server, asked, messages):
    chat = server.ask("/v1/chat/completions", {"messages": messages, "max_tokens": 12, **HOW})[1]
    status, answer = server.ask("/v1/responses", {**asked, "max_output_tokens": 12, **HOW})
    text, usage = chat["choices"][0]["message"]["content"], chat["usage"]
    assert status == 200 and answer["output"][0]["content"][0]["text"] == text
    cut = chat["choices"][0]["finish_reason"] == "length"
    assert answer["status"] == ("incomplete" if cut else "completed")
    assert answer["incomplete_details"] == ({"reason": "max_output_tokens"} if cut else None)
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (
        usage["prompt_tokens"], usage["completion_tokens"])


def test_the_openai_client_reads_it_whole_and_streamed(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    asked = {"model": "any", "input": "the old", "max_output_tokens": 15, "temperature": 0.9, "extra_body": {"seed": 5}}
    whole = client.responses.create(**asked)
    kinds, text = [], ""
    with client.responses.create(**asked, stream=True) as events:
        for event in events:
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == whole.output_text and whole.usage.output_tokens == 15 and whole.status == "incomplete"
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.incomplete"]
    assert event.response.output_text == text and event.sequence_number == len(kinds) - 1


def test_the_openai_client_reads_a_form(server):
    openai = pytest.importorskip("openai")
    pytest.importorskip("llguidance")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    schema = {"type": "object", "properties": {"a": {"enum": ["是", "no"]}}, "required": ["a"],
              "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    found = client.responses.create(model="any", input="?", text=form, max_output_tokens=60)
    assert found.output_text.replace(" ", "").replace("\n", "") in ('{"a":"是"}', '{"a":"no"}')


@pytest.mark.parametrize(("body", "message"), [
    ([], "must be a JSON object"), ({}, "input must be text"), ({"input": []}, "input must be text"),
    ({"input": [{"type": "function_call"}]}, "'function_call'"),
    ({"input": "a", "tools": [{}]}, "tools is not offered"),
    ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id is not offered"),
    ({"input": "a", "instructions": 5}, "instructions must be text"), ({"input": "a", "xyz": 1}, "xyz is not known"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "content of a message must be text"),
    ({"input": "a", "text": {"verbosity": "low"}}, "text.verbosity is not offered")])
def test_what_is_not_offered_is_refused_by_name(body, message):
    with pytest.raises(InputError, match=message):
        to_chat(body)


def test_a_refusal_is_an_error(server):
    for body, message in (({"input": "a", "tools": [{}]}, "tools is not"), ([1], "JSON object"),
                          ({"input": "a", "max_output_tokens": 0}, "max_tokens must be")):
        status, answer = server.ask("/v1/responses", body)
        assert status == 400 and message in answer["error"]["message"]
