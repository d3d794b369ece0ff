"""What is around the texts: ids of text, figures, other sites' pages, a prefix, and how long a prompt may be."""

import re

import pytest
from live import Server

from symboliclight.serve.metrics import Histogram

TEXT = "the old city 春天 🌊 <|user|>"
SITE = "https://page.example.org"


@pytest.fixture(scope="module")
def server(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--slots", "3", "--max-prompt", "40")
    yield server
    code, out, err = server.stop()
    assert (code, out, err) == (0, "stopped\n", "")


@pytest.fixture(scope="module")
def far(small_checkpoint, tmp_path_factory):
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("open sesame")
    server = Server("--model", str(small_checkpoint), "--api-prefix", "/our/model", "--cors", SITE, "--cors",
                    "http://localhost:5173", "--key-file", str(key))
    yield server
    code, out, err = server.stop()
    assert (code, out, err) == (0, "stopped\n", "")


def test_text_becomes_ids_and_text_again(server, small_tokenizer):
    ids = server.ask("/tokenize", {"content": TEXT})[1]["tokens"]
    assert ids == small_tokenizer.encode(TEXT) and small_tokenizer.special("user") in ids
    assert server.ask("/detokenize", {"tokens": ids}) == (200, {"content": TEXT})
    plain = server.ask("/tokenize", {"content": TEXT, "parse_special": False, "add_special": True})[1]["tokens"]
    assert plain == [1, *small_tokenizer.encode(TEXT, special=False)] and small_tokenizer.special("user") not in plain
    assert server.ask("/detokenize", {"tokens": plain})[1]["content"] == TEXT
    assert server.ask("/tokenize", {"content": ""})[1] == {"tokens": []}
    assert server.ask("/detokenize", {"tokens": []})[1] == {"content": ""}


def test_pieces_are_text_or_the_bytes_of_a_part_of_a_character(server):
    pieces = server.ask("/tokenize", {"content": TEXT, "with_pieces": True})[1]["tokens"]
    told = [p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces]
    assert b"".join(told).decode() == TEXT and any(isinstance(p["piece"], list) for p in pieces)


@pytest.mark.parametrize(("path", "body", "message"), [
    ("/tokenize", {}, "JSON object with content"), ("/tokenize", [], "JSON object with content"),
    ("/tokenize", {"content": 5}, "content must be text"), ("/tokenize", {"content": "\ud800"}, "surrogate"),
    ("/tokenize", {"content": "a", "add_special": 1}, "add_special must be true or false"),
    ("/tokenize", {"content": "a", "with_ids": True}, "with_ids is not known"),
    ("/detokenize", {"tokens": "a"}, "list of ids in 0..519"), ("/detokenize", {"tokens": [520]}, "in 0..519"),
    ("/detokenize", {"tokens": [True]}, "in 0..519"), ("/detokenize", {"tokens": [-1]}, "in 0..519"),
])
def test_what_is_no_text_and_no_ids_is_refused(server, path, body, message):
    status, answer = server.ask(path, body)
    assert status == 400 and message in answer["error"]["message"] and "\n" not in answer["error"]["message"]


def test_a_prompt_may_have_so_many_tokens(server):
    assert server.ask("/v1/completions", {"prompt": [1] + [300] * 39, "max_tokens": 1})[0] == 200
    said = {"messages": [{"role": "user", "content": "1" * 50}]}
    for path, body, count in (("/v1/completions", {"prompt": [[1], [1] + [300] * 40]}, 41),
                              ("/v1/chat/completions", said, 51)):
        status, answer = server.ask(path, body)
        assert status == 400
        assert answer["error"]["message"] == (
            f"the prompt has {count} tokens, this server reads 40 at most; shorten it")


def figures(server, path="/metrics", **headers):
    """Samples of an exposition, whose every line is checked."""
    answer = server.open(path, **headers)
    text = answer.read().decode()
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert text.endswith("\n")
    found, typed = {}, set()
    for line in text.splitlines():
        if about := re.fullmatch(r"# (HELP|TYPE) (\w+) .+", line):
            typed.add(about[2])
            continue
        name, value = re.fullmatch(r'(\w+(?:\{\w+="[^"\n]*"(?:,\w+="[^"\n]*")*\})?) (\S+)', line).groups()
        base = name.partition("{")[0]
        assert base in typed or re.sub("_(bucket|sum|count)$", "", base) in typed
        assert base == "symboliclight_requests_total" or 'model="' in name
        name = re.sub(r'\{\}|model="[^"]*",?', "", re.sub(r'\{model="[^"]*"\}', "", name))
        found[name.removeprefix("symboliclight_")] = float(value)
    return found


def test_figures_count_what_was_asked_read_and_written(server):
    before = figures(server)
    body = {"prompt": "the river of the old house", "max_tokens": 9, "n": 2, "ignore_eos": True}
    used = server.ask("/v1/completions", body)[1]["usage"]
    assert server.ask("/v1/completions", {"prompt": 5})[0] == 400
    assert server.ask("/nowhere")[0] == 404
    after = figures(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['requests_total{path="/v1/completions",status="200"}'] == 1
    assert grown['requests_total{path="/v1/completions",status="400"}'] == 1
    assert grown['requests_total{path="other",status="404"}'] == 1
    assert grown['requests_total{path="/metrics",status="200"}'] == 1
    assert grown["written_tokens_total"] == used["completion_tokens"] == 18
    remembered = used["prompt_tokens_details"]["cached_tokens"]
    assert grown['prompt_tokens_total{source="read"}'] == used["prompt_tokens"] - remembered
    assert grown['prompt_tokens_total{source="remembered"}'] == remembered
    assert grown["time_to_first_token_seconds_count"] == 2 and grown["time_between_tokens_seconds_count"] == 16
    assert grown['time_between_tokens_seconds_bucket{le="+Inf"}'] == 16 and grown["time_to_first_token_seconds_sum"] > 0
    assert (after["slots"], after["slots_busy"], after["queue"]) == (3, 0, 0)


def test_a_histogram_counts_what_is_at_most_each_bound():
    histogram = Histogram((0.1, 1))
    for value in (0.05, 0.1, 0.5, 3):
        histogram.observe(value)
    assert list(histogram.samples()) == [('_bucket{le="0.1"}', 2), ('_bucket{le="1"}', 3), ('_bucket{le="+Inf"}', 4),
                                         ("_sum", pytest.approx(3.65)), ("_count", 4)]


def test_all_paths_are_behind_the_prefix(far):
    key = {"Authorization": "Bearer open sesame"}
    assert re.search(r"http://127\.0\.0\.1:\d+/our/model/v1, and a page at", far.line)
    assert far.ask("/our/model/health")[0] == 200 and far.ask("/our/model/v1/models", **key)[0] == 200
    assert far.ask("/our/model/v1/completions", {"prompt": "a", "max_tokens": 1}, **key)[0] == 200
    assert far.open("/our/model/").headers["content-type"].startswith("text/html")
    for path in ("/", "/health", "/v1/models", "/our/model/nowhere"):
        status, answer = far.ask(path)
        assert status == 404 and path in answer["error"]["message"]
    assert figures(far, "/our/model/metrics", **key)['requests_total{path="/our/model/health",status="200"}'] == 1


def test_ids_and_figures_want_the_key(far):
    for path, body in (("tokenize", {"content": "a"}), ("detokenize", {"tokens": []}), ("metrics", None)):
        assert far.ask(f"/our/model/{path}", body)[0] == 401


@pytest.mark.parametrize("origin", [SITE, "http://localhost:5173"])
def test_pages_of_a_named_site_may_ask(far, origin):
    asking = {"Origin": origin, "Access-Control-Request-Method": "POST",
              "Access-Control-Request-Headers": "authorization,content-type"}
    answer = far.open("/our/model/v1/completions", method="OPTIONS", **asking)
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == origin
    for status, headers in ((200, {"Authorization": "Bearer open sesame"}), (401, {})):  # a page may read why not
        answer = far.open("/our/model/v1/completions", {"prompt": "a", "max_tokens": 1}, Origin=origin, **headers)
        assert answer.status == status and answer.headers["access-control-allow-origin"] == origin


def test_no_other_page_may(far, server):
    asking = {"Origin": "https://evil.example.org", "Access-Control-Request-Method": "POST"}
    assert far.open("/our/model/v1/completions", method="OPTIONS", **asking).status == 400
    for one, path in ((far, "/our/model/health"), (server, "/health")):
        assert one.open(path, Origin="https://evil.example.org").headers["access-control-allow-origin"] is None
    assert server.open("/v1/completions", method="OPTIONS", **asking).status == 405  # off unless asked for


def test_all_sites_may_with_a_star(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--cors", "*")
    try:
        assert server.open("/health", Origin=SITE).headers["access-control-allow-origin"] == "*"
    finally:
        server.stop()
