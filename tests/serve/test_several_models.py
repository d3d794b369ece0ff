"""Several models behind one server, read when asked for and let go; embeddings; each over a connection or by itself."""

import asyncio
import base64

import numpy as np
import pytest
from live import Server

from symboliclight import engine
from symboliclight.core import checkpoint
from symboliclight.generate.embedding import embedding
from symboliclight.serve.models import Loader, Models, Served, UnknownModel
from symboliclight.serve.texts import Busy


class Fake:
    """A writer that notes that it was closed."""

    def __init__(self, closed, name):
        self.work, self._note = (0, 0), lambda: closed.append(name)

    def load(self):
        return self.work

    def close(self):
        self._note()


def fakes(sizes, limit):
    read, closed = [], []

    def loader(name, size):
        def load():
            read.append(name)
            return Served(name, None, Fake(closed, name), None, None)
        return Loader(load, size)

    return Models({name: loader(name, size) for name, size in sizes.items()}, limit), read, closed


async def asked(models, *names):
    for name in names:
        async with models.use(name) as served:
            assert served.name == (name or models.names[0])


def test_models_are_read_once_and_the_one_asked_for_longest_ago_goes():
    models, read, closed = fakes({"a": 4, "b": 4, "c": 4, "large": 20}, 8)
    asyncio.run(asked(models, "a", None, "b", "a", "c"))
    assert (read, closed, list(models.read)) == (["a", "b", "c"], ["b"], ["a", "c"])
    asyncio.run(asked(models, "large"))  # alone, and larger than all room
    assert list(models.read) == ["large"] and closed == ["b", "a", "c"]
    models.close()
    assert closed[-1] == "large"


def test_a_model_in_use_stays_and_there_may_be_no_room():
    models, read, closed = fakes({"a": 4, "b": 4, "c": 4}, 8)

    async def go():
        async with models.use("a"):
            await asked(models, "b", "c")  # b goes, not a, which was asked for before it
            assert closed == ["b"]
            models.read["c"].writer.work = (1, 0)
            with pytest.raises(Busy, match="no room for b while a, c"):
                await asked(models, "b")
        await asked(models, "b")
        assert closed == ["b", "a"] and read == ["a", "b", "c", "b"]

    asyncio.run(go())


@pytest.mark.parametrize("name", ["other", 5, ["a"]])
def test_an_unknown_model_is_named_unless_there_is_one_alone(name):
    models, _, _ = fakes({"a": 1, "b": 1}, None)
    with pytest.raises(UnknownModel, match="this server has a, b"):
        asyncio.run(asked(models, name))
    alone, _, _ = fakes({"a": 1}, None)

    async def any_name():
        async with alone.use(name) as served:
            assert served.name == "a"

    asyncio.run(any_name())


@pytest.fixture(scope="module")
def folders(small_checkpoint, tmp_path_factory):
    """The small model at 8 bits, and the same with other weights."""
    folder = tmp_path_factory.mktemp("models")
    config, weights = checkpoint.load(small_checkpoint, "numpy")
    other = {name: x * 1.1 if x.ndim > 1 else x for name, x in weights.items()}
    checkpoint.save(folder / "other-weights", config, other, checkpoint.load_tokenizer(small_checkpoint))
    engine.export(small_checkpoint, folder / "small", "int8")
    engine.export(folder / "other-weights", folder / "other", "int8")
    return folder


@pytest.fixture(scope="module")
def server(folders):
    size = checkpoint.weight_bytes(folders / "small")
    server = Server("--model", str(folders / "small"), "--model", f"second={folders / 'other'}", "--threads", "1",
                    "--model-memory", str(max(1, size >> 20)))
    yield server
    code, out, err = server.stop()
    assert (code, out, err) == (0, "stopped\n", "")


def test_requests_choose_a_model_by_its_name(server, folders, small_tokenizer):
    assert "second when asked for" in server.line
    assert [m["loaded"] for m in server.ask("/v1/models")[1]["data"]] == [True, False]
    body = {"prompt": "the old", "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    texts = {}
    for name, folder in (("small", "small"), ("second", "other"), (None, "small")):
        status, answer = server.ask("/v1/completions", body | ({"model": name} if name else {}))
        assert status == 200 and answer["model"] == (name or "small")
        texts[name] = answer["choices"][0]["text"]
        model = engine.load(folders / folder, threads=1)
        ids = small_tokenizer.encode("the old", bos=True)
        first = int(model.last(np.array([ids]))[0][0].argmax())
        assert texts[name].startswith(small_tokenizer.decode([first])[:1])
    assert texts["small"] == texts[None] != texts["second"]
    assert 'symboliclight_slots{model="second"} 16' in server.open("/metrics").read().decode()
    status, answer = server.ask("/v1/completions", body | {"model": "third"})
    assert status == 404 and "this server has small, second" in answer["error"]["message"]
    assert server.ask("/v1/models/second")[1]["id"] == "second" and server.ask("/v1/models/third")[0] == 404


def test_an_embedding_is_the_mean_of_the_stream(server, folders, small_tokenizer):
    model = engine.load(folders / "small", threads=1)
    texts = ["the old river", "春天的风", "the sun " * 400]
    status, answer = server.ask("/v1/embeddings", {"input": texts, "model": "small"})
    assert status == 200 and [one["index"] for one in answer["data"]] == [0, 1, 2]
    for text, one in zip(texts, answer["data"], strict=True):
        ids = small_tokenizer.encode(text, bos=True)
        mean = model.stream(np.array([ids]))[0][0, 1:].astype(np.float64).mean(0)
        np.testing.assert_allclose(one["embedding"], mean / np.linalg.norm(mean), atol=1e-6)
    short = server.ask("/v1/embeddings", {"input": small_tokenizer.encode(texts[0]), "encoding_format": "base64"})[1]
    packed = np.frombuffer(base64.b64decode(short["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(packed, np.float32(answer["data"][0]["embedding"]))


@pytest.mark.parametrize(("body", "message"), [
    ({}, "with input"), ({"input": ""}, "none of them empty"), ({"input": [1]}, "none of them empty"),
    ({"input": []}, "input must hold"), ({"input": "a", "dimensions": 8}, "dimensions is not known"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format must be"),
    ({"input": {"a": 1}}, "input must be text")])
def test_what_cannot_be_embedded_is_refused_by_name(server, body, message):
    status, answer = server.ask("/v1/embeddings", body)
    assert status == 400 and message in answer["error"]["message"]


def test_the_torch_model_and_the_runtime_embed_alike(small_model, small_checkpoint, small_tokenizer):
    ids = small_tokenizer.encode("the old river " * 60, bos=True)
    ours = embedding(engine.load(small_checkpoint, "float32", threads=1), ids)
    np.testing.assert_allclose(embedding(small_model, ids), ours, atol=1e-5)
    assert abs(np.linalg.norm(ours) - 1) < 1e-6
