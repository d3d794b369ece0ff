"""The page at `/`: it asks nothing of other sites, its headers hold it to that, and what it says, it says twice."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from test_serve_command import Server

VOID = {"meta", "link", "input", "br"}


class Tree(HTMLParser):
    """Tags with their attributes; fails at one that is not closed, or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.inside = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs), [t for t, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, len(self.tags) - 1))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> at {self.getpos()} within {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            index = self.open[-1][1]
            self.inside[index] = self.inside.get(index, "") + data


@pytest.fixture(scope="module")
def server(small_checkpoint, tmp_path_factory):
    (key := tmp_path_factory.mktemp("page") / "key").write_text("secret")
    server = Server("--model", str(small_checkpoint), "--key-file", str(key), "--temperature", "0.7", "--top-k", "9",
                    "--max-tokens", "33")
    yield server
    assert server.stop() == (0, "stopped\n", "")


@pytest.fixture(scope="module")
def page(server):
    link = server.connect()
    link.request("GET", "/")
    answer = link.getresponse()
    answer.text = answer.read().decode()
    return answer


@pytest.fixture(scope="module")
def tree(page):
    return Tree(page.text)


@pytest.fixture(scope="module")
def words(tree):
    index = next(i for i, (_, attrs, _) in enumerate(tree.tags) if attrs.get("id") == "words")
    return json.loads(tree.inside[index])


def test_it_comes_without_a_key_as_html(page):
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>\n") and len(page.text) < 64 << 10


def test_headers_let_run_what_stands_in_it_alone(page):
    rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    hashes = {}
    for tag in ("script", "style"):
        code = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        assert len(code) == 1
        hashes[tag] = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert rules == {"default-src": "'none'", "script-src": f"'sha256-{hashes['script']}'",
                     "style-src": f"'sha256-{hashes['style']}'", "connect-src": "'self'", "img-src": "data:",
                     "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"


def test_it_names_no_other_site(page, tree):
    assert not re.search(r"(?:https?:|wss?:)?//[\w.-]+\.\w|@import|url\(|import\(", page.text)
    sources = [attrs[a] for _, attrs, _ in tree.tags for a in ("src", "href", "action", "srcset") if a in attrs]
    assert sources == ["data:,"]
    assert not [attrs for _, attrs, _ in tree.tags if "style" in attrs or any(a.startswith("on") for a in attrs)]
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", page.text)


def test_every_field_has_a_label_and_every_id_is_one(tree):
    ids = [attrs["id"] for _, attrs, _ in tree.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labelled = {attrs["for"] for tag, attrs, _ in tree.tags if tag == "label" and "for" in attrs}
    assert labelled <= set(ids)
    fields = [(attrs, above) for tag, attrs, above in tree.tags if tag in ("input", "select", "textarea", "meter")]
    assert len(fields) > 15
    for attrs, above in fields:
        assert "label" in above or attrs.get("id") in labelled or attrs.get("aria-labelledby") in ids, attrs
    live = {attrs["id"]: attrs["aria-live"] for _, attrs, _ in tree.tags if "aria-live" in attrs}
    assert live == {"out-write": "polite", "out-chat": "polite"}


def test_both_languages_say_the_same_things(page, tree, words):
    assert words["en"].keys() == words["zh"].keys()
    for name, english in words["en"].items():
        assert english and words["zh"][name]
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", words["zh"][name])), name
    for index, (_, attrs, _) in enumerate(tree.tags):
        for attribute in ("data-say", "data-say-label", "data-say-empty"):
            assert attrs.get(attribute, "text") in words["en"]
        if "data-say" in attrs:  # what stands there before the script runs
            assert tree.inside[index] == words["en"][attrs["data-say"]]
    called = set(re.findall(r"\bsay\(\"(\w+)\"", page.text))
    assert called and called <= words["en"].keys()
    assert any("\u4e00" <= c <= "\u9fff" for c in words["zh"]["send"])


def test_the_page_finds_out_what_it_may_ask_for(server):
    model = server.ask("/v1/models", Authorization="Bearer secret")[1]["data"][0]
    assert "spikes" in model["features"]
    assert model["defaults"] == {"temperature": 0.7, "top_k": 9, "top_p": 1.0, "max_tokens": 33}


def test_only_the_root_is_the_page(server):
    assert server.ask("/", {})[0] == 405 and server.ask("/page.html")[0] == 404
