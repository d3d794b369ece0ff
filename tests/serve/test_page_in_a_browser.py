"""The page in Chromium, before a real server. It runs where Playwright and a Chromium are installed."""

import json
import os
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_serve_command import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.needs("playwright"),
              pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
SECONDS = 30_000  # milliseconds that a step may take


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        options = ["--no-sandbox"] if os.getuid() == 0 else []  # root has no sandbox
        browser = play.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--slots", "4", "--max-tokens", "30")
    yield server
    assert server.stop() == (0, "stopped\n", "")


@pytest.fixture
def visit(browser):
    """Opens the page of a port; fails at the end if it complained, asked elsewhere, or was kept from something."""
    opened, complaints = [], []

    def visit(port, **how):
        context = browser.new_context(**{"locale": "en-US", **how})
        context.set_default_timeout(SECONDS)
        opened.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error"
                and "Failed to load resource" not in message.text else None)  # an answer that is a refusal
        page.on("request", lambda request: complaints.append(request.url)
                if not request.url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) else None)
        page.goto(f"http://127.0.0.1:{port}/")
        return page

    yield visit
    for context in opened:
        context.close()
    assert not complaints


def wait(locator, condition, *args):
    from playwright.sync_api import expect

    getattr(expect(locator), condition)(*args, timeout=SECONDS)


def asked(page):
    """Bodies of the requests for text that a page makes from now on."""
    bodies = []
    page.on("request", lambda request: bodies.append(json.loads(request.post_data))
            if request.method == "POST" else None)
    return bodies


def send(page, text):
    wait(page.locator("#send"), "to_be_enabled")
    page.fill("#input", text)
    page.press("#input", "Control+Enter")
    wait(page.locator("#stop"), "to_be_disabled")
    wait(page.locator("#status"), "to_contain_text", "Done")


def test_text_and_spikes_arrive_and_are_those_of_the_server(visit, server):
    page = visit(server.port)
    wait(page.locator("#model"), "to_have_text", "model")
    assert page.input_value("#max_tokens") == "30"
    page.fill("#seed", "7")
    page.fill("#temperature", "0.9")
    page.fill("#top_k", "12")
    bodies = asked(page)
    send(page, "the old city")
    assert bodies[-1]["spikes"] is True and bodies[-1]["stream"] is True
    body = {"prompt": "the old city", "seed": 7, "temperature": 0.9, "top_k": 12, "top_p": 1, "max_tokens": 30}
    assert {name: bodies[-1][name] for name in body} == body
    whole = server.ask("/v1/completions", body)[1]
    text = whole["choices"][0]["text"]
    assert page.evaluate("last.text") == text and page.evaluate("last.prompt + last.text") == "the old city" + text
    assert page.locator("#out-write").text_content() == "the old city" + text
    tokens = whole["usage"]["completion_tokens"]
    assert page.evaluate("spikes.total") == tokens and f"{tokens} tokens, seed 7" in page.inner_text("#status")
    marks = "[...$('canvas').getContext('2d').getImageData(0, 0, $('canvas').width, $('canvas').height).data]"
    assert page.evaluate(f"{marks}.some((x, i) => i % 4 === 3 && x)")
    assert page.locator("#layers tr").count() == 3  # the encoder, and two layers
    assert " MB of " in page.inner_text("#bytes-text") or " kB of " in page.inner_text("#bytes-text")
    assert 0 < float(page.evaluate("$('bytes').value")) < 1
    canvas = page.locator("#canvas")
    canvas.hover(position={"x": 7, "y": 5})
    assert "shown units spike" in page.inner_text("#tip") and page.inner_text("#tip").startswith("1: ")


def test_a_seed_gives_the_text_again_and_continue_goes_on(visit, server):
    page = visit(server.port)
    page.fill("#seed", "3")
    send(page, "春天")
    text = page.evaluate("last.text")
    page.click("#again")
    wait(page.locator("#status"), "to_contain_text", "Done")
    assert page.evaluate("last.text") == text
    bodies = asked(page)
    page.click("#more")
    wait(page.locator("#status"), "to_contain_text", "Done")
    assert bodies[0]["prompt"] == "春天" + text
    assert page.locator("#out-write").text_content() == "春天" + text + page.evaluate("last.text")


def test_a_conversation_is_sent_whole_and_regenerated(visit, server):
    page = visit(server.port)
    page.check("input[value=chat]")
    bodies = asked(page)
    send(page, "the old city")
    first = page.evaluate("last.text")
    send(page, "and then?")
    assert [m["role"] for m in bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert bodies[1]["messages"][1]["content"] == first
    page.click("#again")
    wait(page.locator("#status"), "to_contain_text", "Done")
    assert bodies[2]["messages"] == bodies[1]["messages"]
    assert page.locator("#out-chat article").count() == 4
    page.click("#clear")
    assert page.locator("#out-chat article").count() == 0 and page.evaluate("talk.length") == 0


def test_a_text_is_forked_and_goes_on_from_there_twice(visit, server):
    page = visit(server.port)
    page.fill("#seed", "3")
    send(page, "the old")
    first = "the old" + page.evaluate("last.text")
    page.click("#fork")
    wait(page.locator("#status"), "to_contain_text", "Kept as it stands")
    page.click("#clear")
    page.locator("#forks button").click()
    wait(page.locator("#out-write"), "to_have_text", first)
    bodies = asked(page)
    for more in (" river", " city"):
        send(page, more)
        assert bodies[-1]["prompt"] == more and bodies[-1]["state"].startswith("page-")
        assert page.locator("#out-write").text_content() == first + more + page.evaluate("last.text")
    page.click("#clear")
    send(page, "the old")
    assert "state" not in bodies[-1]


def test_a_conversation_is_forked(visit, server):
    page = visit(server.port)
    page.check("input[value=chat]")
    send(page, "the old city")
    page.click("#fork")
    wait(page.locator("#status"), "to_contain_text", "Kept as it stands")
    send(page, "and then?")
    bodies = asked(page)
    page.locator("#forks button").click()
    assert page.locator("#out-chat article").count() == 2
    send(page, "why?")
    assert [m["content"] for m in bodies[-1]["messages"]] == ["why?"] and bodies[-1]["state"].startswith("page-")
    assert page.locator("#out-chat article").count() == 4 and page.evaluate("talk.length") == 4


def test_escape_stops_and_what_was_written_stays(visit, server):
    page = visit(server.port)
    page.fill("#max_tokens", "1000000")
    page.fill("#input", "the")
    page.evaluate("SETTINGS.push('ignore_eos'); window.field = make('input', document.body); field.id = 'ignore_eos'; "
                  "field.value = '1'; const real = settings; settings = () => ({...real(), ignore_eos: true})")
    page.click("#send")
    wait(page.locator("#pace"), "to_contain_text", "tokens")
    page.keyboard.press("Escape")
    wait(page.locator("#status"), "to_have_text", "Stopped.")
    assert page.evaluate("last.text.length") > 0
    assert page.evaluate("document.activeElement.id") == "input"
    deadline = time.monotonic() + 20
    while server.running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.running() == 0


def test_copy_and_download(visit, server):
    page = visit(server.port, permissions=["clipboard-read", "clipboard-write"])
    send(page, "the old city")
    page.click("#copy")
    wait(page.locator("#status"), "to_have_text", "Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.evaluate("last.prompt + last.text")
    with page.expect_download() as download:
        page.click("#save")
    with open(download.value.path(), encoding="utf-8") as file:
        found = json.load(file)
    assert found["text"] == page.evaluate("last.text") and found["prompt"] == "the old city" and found["seed"] >= 0
    assert found["spikes"]["tokens"] == found["usage"]["completion_tokens"]
    assert found["spikes"]["mean"]["bytes"] < found["spikes"]["mean"]["twin_bytes"]


def test_copy_where_the_browser_has_no_clipboard(visit, server):
    """It has none on a page that came over plain HTTP from another machine."""
    page = visit(server.port, permissions=["clipboard-read"])
    send(page, "the old\n\ncity")
    page.evaluate("window.real = navigator.clipboard; "
                  "Object.defineProperty(navigator, 'clipboard', {value: undefined}); 0")
    page.click("#copy")
    wait(page.locator("#status"), "to_have_text", "Copied.")
    assert page.evaluate("real.readText()") == page.evaluate("last.prompt + last.text")
    assert page.evaluate("document.activeElement.id") == "copy"


def test_language_and_theme_follow_the_reader_and_the_switches(visit, server):
    page = visit(server.port, locale="zh-CN", color_scheme="dark")
    assert page.inner_text("#send") == "发送" and page.evaluate("document.documentElement.lang") == "zh-CN"
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(21, 23, 28)"
    page.select_option("#theme", "light")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.select_option("#language", "en")
    assert page.inner_text("#send") == "Send"
    page.reload()  # both are kept
    assert page.inner_text("#send") == "Send" and page.evaluate(paper) == "rgb(255, 255, 255)"


def test_a_narrow_page_does_not_scroll_sideways(visit, server):
    page = visit(server.port, viewport={"width": 360, "height": 740})
    send(page, "the old city " * 30 + "a" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_everything_is_reached_by_the_keyboard_and_seen_there(visit, server):
    page = visit(server.port)
    send(page, "the")
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate("[document.activeElement.id || document.activeElement.value || '', "
                              "getComputedStyle(document.activeElement).outlineStyle]")
        if found[0] and found[0] in reached:
            break
        reached += [found[0]]
        assert found[1] == "solid" or not found[0], found
    assert {"language", "theme", "write", "out-write", "input", "send", "again", "more", "copy", "save", "clear",
            "temperature-range", "temperature", "seed", "watch", "raster"} <= set(reached)


def test_without_spikes_nobody_is_asked_for_them(visit, server):
    page = visit(server.port)
    send(page, "the")
    page.uncheck("#watch")
    bodies = asked(page)
    send(page, "the")
    assert "spikes" not in bodies[0] and page.locator("#figures").is_hidden()


def test_a_key_is_asked_for_where_the_server_wants_one(visit, small_checkpoint, tmp_path):
    (tmp_path / "key").write_text("open sesame\n")
    server = Server("--model", str(small_checkpoint), "--key-file", str(tmp_path / "key"), "--max-tokens", "5")
    page = visit(server.port)
    wait(page.locator("#door"), "to_be_visible")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    wait(page.locator("#notice"), "to_be_visible")
    page.fill("#key", "open sesame")
    page.press("#key", "Enter")
    wait(page.locator("#door"), "to_be_hidden")
    send(page, "the")
    assert page.locator("#notice").is_hidden()
    server.stop()


def test_a_server_that_goes_is_noticed_and_one_that_comes_back_too(visit, small_checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = ["--model", str(small_checkpoint), "--max-tokens", "5", "--port", str(port)]
    server = Server(*start)
    page = visit(port)
    send(page, "the")
    server.stop()
    page.press("#input", "Control+Enter")
    wait(page.locator("#notice"), "to_contain_text", "does not answer")
    assert page.locator("#out-write").text_content().startswith("the")
    server = Server(*start)
    wait(page.locator("#notice"), "to_be_hidden")
    send(page, "the")
    server.stop()


class Told(BaseHTTPRequestHandler):
    """A server that plays what a test wants: the page of the real one, and answers of its own."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        model = {"id": "played", "features": self.server.features}
        page = self.path == "/"
        self.send_header("Content-Type", "text/html; charset=utf-8" if page else "application/json")
        self.end_headers()
        self.wfile.write(self.server.page if page else json.dumps({"data": [model]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        status, parts = self.server.play(body)
        self.send_response(status)
        self.end_headers()
        for part in parts:
            self.wfile.write(part.encode())


@pytest.fixture
def played(server):
    link = server.connect()
    link.request("GET", "/")
    page = link.getresponse().read()
    stage = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    stage.page, stage.bodies, stage.features = page, [], []
    threading.Thread(target=stage.serve_forever, daemon=True).start()
    yield stage
    stage.shutdown()
    stage.server_close()


def chunk(**choice):
    return "data: " + json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]}) + "\n\n"


@pytest.mark.parametrize("chat", [False, True])
def test_probabilities_are_seen_at_a_token(visit, played, chat):
    """OpenAI's two forms of logprobs."""
    tokens = [("the", -0.1), (" old", -1.2)]

    def play(body):
        assert body["logprobs"] == (True if chat else 5) and body.get("top_logprobs") == (5 if chat else None)
        for token, p in tokens:
            if chat:
                top = [{"token": token, "logprob": p}, {"token": " new", "logprob": -2.0}]
                yield chunk(delta={"content": token},
                            logprobs={"content": [{"token": token, "logprob": p, "top_logprobs": top}]})
            else:
                yield chunk(text=token, logprobs={"tokens": [token], "token_logprobs": [p],
                                                  "top_logprobs": [{token: p, " new": -2.0}], "text_offset": [0]})
        yield "data: [DONE]\n\n"

    played.features = ["logprobs"]
    played.play = lambda body: (200, play(body))
    page = visit(played.server_port)
    wait(page.locator("#model"), "to_have_text", "played")
    if chat:
        page.check("input[value=chat]")
    send(page, "a")
    page.locator(".token").nth(1).hover()
    tip = page.inner_text("#tip")
    assert tip.splitlines() == ['" old"  30.1%', '  ▸  30.1%  " old"', '     13.5%  " new"']
    page.focus(f"#out-{'chat' if chat else 'write'}")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#status").startswith('"the" 90.5% ▸ 90.5%')
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_a_server_that_refuses_logprobs_is_asked_without(visit, played):
    refusal = json.dumps({"error": {"message": "logprobs is not offered here; leave it out"}})
    played.features = ["logprobs"]
    played.play = lambda body: (400, [refusal]) if "logprobs" in body else (200, [chunk(text="x"), "data: [DONE]\n\n"])
    page = visit(played.server_port)
    wait(page.locator("#model"), "to_have_text", "played")
    send(page, "a")
    assert ["logprobs" in body for body in played.bodies] == [True, False]
    assert page.locator("#chances-line").is_hidden() and page.locator("#notice").is_hidden()


@pytest.mark.parametrize(("status", "parts", "notice"), [
    (503, [json.dumps({"error": {"message": "256 texts are waiting"}})], "The server refused: 256 texts are waiting"),
    (200, [chunk(text="some"), 'data: {"error": {"message": "it failed"}}\n\n'], "The server refused: it failed"),
    (200, [chunk(text="some")], "The server does not answer"),
])
def test_what_goes_wrong_is_said(visit, played, status, parts, notice):
    played.play = lambda body: (status, parts)
    page = visit(played.server_port)
    page.fill("#input", "a")
    page.click("#send")
    wait(page.locator("#notice"), "to_contain_text", notice)
    wait(page.locator("#status"), "to_have_text", "Broken off.")
    assert page.locator("#out-write").text_content() == "a" + "some" * (status == 200)
    assert page.locator("#again").is_enabled()


def test_markup_in_a_text_is_text(visit, played):
    text = "<img src=x onerror=alert(1)>\n&amp;<b>"
    played.play = lambda body: (200, [chunk(text=text), "data: [DONE]\n\n"])
    page = visit(played.server_port)
    send(page, "<i>a</i>\n\nb")
    assert page.locator("#out-write").text_content() == "<i>a</i>\n\nb" + text
    assert page.locator("#out-write img, #out-write b, #out-write i").count() == 0


def test_ten_thousand_tokens_do_not_slow_the_page(visit, played):
    """Those of the last third are taken about as fast as those of the first; the raster keeps no more than it shows."""
    layout = {"sites": [{"name": name, "units": 256, "shown": 48} for name in
                        ("encoder", *(f"blocks.{i}" for i in range(12)))]}
    one = {"index": 0, "silent": [0.9] * 13, "fired": "IAAB" * 26, "bytes": 5, "twin_bytes": 7, "operations": 5,
           "twin_operations": 7}

    def play():
        yield f"event: spikes\ndata: {json.dumps(layout)}\n\n"
        for i in range(10_000):
            text = f" word{i}" + "\n" * (i % 60 == 59)
            at = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0, "x": -2.0}]}
            yield (f"event: spikes\ndata: {json.dumps(one | {'token': i, 'id': i})}\n\n"
                   + chunk(text=text, logprobs=at))
            if i % 20 == 0:
                time.sleep(0.004)
        yield "data: [DONE]\n\n"

    played.features = ["logprobs", "spikes"]
    played.play = lambda body: (200, play())
    page = visit(played.server_port)
    wait(page.locator("#model"), "to_have_text", "played")
    page.evaluate("window.spent = []; const flush = Page.prototype.flush; Page.prototype.flush = function () { "
                  "const start = performance.now(), n = this.pieces.length; flush.call(this); "
                  "spent.push([n, performance.now() - start]); }; 0")
    send(page, "a")
    spent = page.evaluate("spent")
    assert sum(n for n, _ in spent) == 10_001 and page.locator("#out-write .token").count() == 10_000
    assert page.evaluate("spikes.columns.length <= spikes.room")
    third = len(spent) // 3
    first, last = (sum(ms for _, ms in part) / sum(n for n, _ in part) for part in (spent[:third], spent[-third:]))
    assert last < 3 * max(first, 0.05), f"a token cost {first:.3f} ms at the beginning, {last:.3f} ms at the end"
