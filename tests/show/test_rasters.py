"""Rasters as pages, pictures and arrays: every spike of the model must be in them."""

import base64
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from symboliclight.commands import cli
from symboliclight.core.errors import InputError
from symboliclight.measure.raster import raster
from symboliclight.show.rasters import arrays, chosen, page, picture, vector

TEXTS = ("the </script> city & the river", "春天的风吹过江南")


@pytest.fixture(scope="module")
def found(small_model, small_tokenizer):
    return {text: raster(small_model, small_tokenizer, text) for text in TEXTS}


def test_the_page_holds_every_spike_and_nothing_from_elsewhere(found):
    text = page(found, "small & <model>")
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert "http" not in text and "src=" not in text and json.loads(data)["model"] == "small & <model>"
    for shown, (sentence, one) in zip(json.loads(data)["texts"], found.items(), strict=True):
        assert (shown["text"], shown["labels"]) == (sentence, one.labels)
        for site in shown["sites"]:
            bits = np.unpackbits(np.frombuffer(base64.b64decode(site["bits"]), np.uint8))
            spikes = one.spikes[site["name"]]
            assert np.array_equal(bits[: spikes.size].reshape(-1, site["units"]), spikes)
            assert site["rate"] == spikes.mean()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here to run the page in")
def test_a_browser_draws_the_page_and_tells_what_it_points_at(found, tmp_path):
    one = found[TEXTS[0]]
    t, unit = np.argwhere(one.spikes["encoder"])[3]
    point = f"""<script>
        const canvas = document.querySelector("canvas"), at = canvas.getBoundingClientRect();
        const where = {{clientX: at.x + {t} * 20 + 9, clientY: at.y + {unit} * 2 + 1.5}}; // 2 px a unit, a border
        canvas.dispatchEvent(new MouseEvent("mousemove", where));</script>"""
    file = tmp_path / "page.html"
    file.write_text(page(found, "small") + point, encoding="utf-8")
    done = subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()],
                          capture_output=True, text=True, timeout=60)
    assert done.stdout.count("<canvas") == 2 * 5
    assert f"token {t}: {one.labels[t]}\nencoder, unit {unit}: spike\n" in done.stdout
    assert done.stdout.count('class="row" hidden') == 2 * 2  # FFN sites come when they are ticked


def test_the_picture_draws_chinese_where_a_font_has_it_and_counts_it_where_none_has(found, recwarn, monkeypatch):
    image, missing = picture(found)
    assert image.startswith(b"\x89PNG") and not [w for w in recwarn if "Glyph" in str(w.message)]
    assert missing in (0, len(found[TEXTS[1]].labels) - 1)
    monkeypatch.setattr("symboliclight.show.rasters.drawable", lambda: lambda label: label != "‹start›")
    assert picture(found, ["encoder"])[1] == 2


def test_the_svg_stacks_the_texts(found):
    root = ET.fromstring(vector(found, ["blocks"], units=8))
    inner = list(root)
    assert [int(i.get("y")) for i in inner] == [0, int(inner[0].get("height"))]
    assert int(root.get("height")) == sum(int(i.get("height")) for i in inner)
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert titles.count("blocks.1") == 2 and "encoder" not in titles


def test_arrays_and_stacks_are_the_spikes(found):
    one = found[TEXTS[1]]
    with np.load(io.BytesIO(arrays(found))) as stored:
        assert str(stored["1/text"]) == TEXTS[1] and list(stored["1/labels"]) == one.labels
        assert all(np.array_equal(stored[f"1/{name}"], spikes) for name, spikes in one.spikes.items())
    assert one.stack("ffn").shape == (2, len(one.labels), 64) and one.stack("encoder").shape[0] == 1
    assert one.rates() == {name: s.mean() for name, s in one.spikes.items()}
    assert one._repr_html_().startswith("<svg")
    with pytest.raises(InputError, match="no spike site of kind 'head'"):
        one.stack("head")


def test_sites_are_chosen_by_name_and_kind(found):
    one = found[TEXTS[0]]
    assert chosen(one, None) == ["encoder", "blocks.0", "blocks.1"]
    assert chosen(one, ["ffn", "encoder"]) == ["encoder", "ffn.0", "ffn.1"] and chosen(one, ["ffn.1"]) == ["ffn.1"]
    for bad in (["head"], []):
        with pytest.raises(InputError, match="no spike site"):
            chosen(one, bad)


@pytest.mark.parametrize("suffix", ["html", "png", "svg", "npz"])
def test_the_command_writes_each_format_and_prints_rates(small_checkpoint, tmp_path, suffix, found, capsys):
    out = tmp_path / f"raster.{suffix}"
    assert cli.main(["raster", *TEXTS, "--model", str(small_checkpoint), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    rates = [f"{one.rates()['ffn.1']:.2%}" for one in found.values()]
    assert re.search(rf"^ffn\.1\s+{rates[0]}\s+{rates[1]}$", shown, re.MULTILINE) and str(out) in shown
    assert shown.count("no font") <= 1 and out.stat().st_size > 500
    assert str(tmp_path) not in out.read_bytes().decode("latin-1")


def test_the_command_without_texts_shows_both_languages(small_checkpoint, tmp_path, capsys):
    out = str(tmp_path / "raster.html")
    assert cli.main(["raster", "--model", str(small_checkpoint), "--out", out, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rates"]) == 2


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "`symboliclight demo` trains one in a few minutes, then --model demo/tiny"),
    (["--model", "nowhere"], "nowhere does not exist; check the path; give --model DIR, a trained model"),
    (["--model", "x", "--out", "a.pdf"], "--out must end in .html, .png, .svg, .npz, got a.pdf"),
    (["", "--model", "x"], "an empty text has no spikes to draw"),
    (["--model", "x", "--units", "0"], "--units must be positive"),
])
def test_the_command_refuses(arguments, message, capsys):
    assert cli.main(["raster", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_text_that_is_too_long_is_refused(small_checkpoint, capsys):
    assert cli.main(["raster", "city " * 500, "--model", str(small_checkpoint)]) == 2
    assert "at most 400 tokens" in capsys.readouterr().err
