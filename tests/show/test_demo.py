"""The demo from the embedded corpus to its report, at a fraction of its budget."""

import json
import re
from contextlib import nullcontext

import pytest

from symboliclight.core import lock
from symboliclight.show import demo as recipes
from symboliclight.show.demo import Demo, demo, sentence
from symboliclight.show.report import comparison_rows, site_groups


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "SAMPLE_TOKENS", 8)
        result = demo(out, Demo(tokens=8192), lambda text: nullcontext())
        again = demo(out, Demo(tokens=8192), lambda text: nullcontext())
    return out, result, again


def test_report_is_one_self_contained_page(finished):
    out, _, _ = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(http|//|\.?/)""", page)
    assert page.count("<svg") == 4  # learning curves, sparsity, a raster in each language
    for heading in ("The comparison", "Learning", "By domain", "Who is silent", "Spikes of a sentence", "Samples"):
        assert f"<h2>{heading}</h2>" in page


def test_every_picture_is_also_a_file_of_its_own(finished):
    out, _, _ = finished
    for name in ("losses", "sparsity", "raster-english", "raster-chinese"):
        assert "<svg" in (out / f"{name}.svg").read_text(encoding="utf-8")


def test_page_shows_the_figures_of_the_result_file(finished):
    out, result, _ = finished
    page, stored = (out / "report.html").read_text(encoding="utf-8"), json.loads((out / "result.json").read_text())
    assert stored["runs"] == json.loads(json.dumps(result["runs"]))
    assert {"commit", "machine", "seed", "data_hash"} <= stored.keys()
    for row in comparison_rows(stored["runs"])[1]:
        assert all(f"<td>{cell}</td>" in page for cell in row)


def test_both_models_read_the_same_tokens_and_only_ours_is_silent(finished):
    _, result, _ = finished
    ours, rival = result["runs"]
    assert ours["tokens"] == rival["tokens"] == result["budget"]["tokens"] == 8192
    assert "So many were asked for." in result["lead"]
    assert ours["eval"]["mean"]["token_weighted"]["tokens"] == rival["eval"]["mean"]["token_weighted"]["tokens"]
    assert abs(ours["parameters"] / rival["parameters"] - 1) < 0.02
    assert set(site_groups(ours["eval"])) == {"encoder", "FFN", "blocks"}
    assert site_groups(rival["eval"]) == {}


def test_a_second_demo_in_the_same_folder_trains_nothing_again_and_finds_the_same(finished):
    _, result, again = finished
    for first, second in zip(result["runs"], again["runs"], strict=True):
        assert first["eval"]["mean"] == second["eval"]["mean"] and first["metrics"] == second["metrics"]
    assert result["samples"] == again["samples"]


def test_a_demo_that_another_process_works_on_is_left_to_it(tmp_path):
    with lock.held(tmp_path / lock.NAME, tmp_path), pytest.raises(lock.InUse, match="is in use by process"):
        demo(tmp_path, Demo(), lambda text: nullcontext())
    assert list(tmp_path.iterdir()) == []


def test_sentence_ends_where_a_sentence_ends(small_tokenizer):
    text = "One. Two is longer! And this is cut somewhere in the middle of it"
    assert sentence(text, small_tokenizer, 30).endswith(("!", "."))
    assert "\ufffd" not in sentence("却说曹操引兵出关", small_tokenizer, 3)
