"""Small real things that several tests share; nothing here takes more than a second.

And what holds for all tests: a fixture may take a third of the time limit, and no session ends without naming a test.
"""

import importlib.util
import json
import sys
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from symboliclight.core.config import DataConfig, ModelConfig, RunConfig

TORCH = importlib.util.find_spec("torch") is not None
TEXT = [
    "the sun rose over the old city, and the light fell on the water of the river; nobody in the house was awake. ",
    "春天的风吹过江南的小镇，桥下的水慢慢地流着。孩子们在河边唱歌，老人坐在树下看着远处的山。",
    "def add(a, b):\n\treturn a + b  # 2 + 2 = 4\n",
]


SHARE = 1 / 3  # of the time limit of a test that a fixture may take: the test that comes first pays for it
_running = "before the first test"


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> Iterator[object]:
    start = time.perf_counter()
    value = yield
    seconds, limit = time.perf_counter() - start, SHARE * float(request.config.getini("timeout") or "inf")
    if seconds > limit:
        pytest.fail(f"fixture {fixturedef.argname} took {seconds:.0f} s, more than the {limit:.0f} s that one may: "
                    "give it fewer tokens or a smaller size")
    return value


def pytest_runtest_logstart(nodeid: str) -> None:
    global _running
    _running = nodeid


def pytest_internalerror() -> None:
    sys.stderr.write(f"\nthe session ends within {_running}\n")


class TorchFree(pytest.Module):
    """A file of tests where PyTorch is not installed: it is skipped if it imports what is not there."""

    def collect(self):
        try:
            return list(super().collect())
        except self.CollectError as error:
            name = getattr(error.__cause__, "name", None) or "symboliclight"
            if not isinstance(error.__cause__, ModuleNotFoundError) or name.startswith("symboliclight"):
                raise
        return pytest.skip(f"needs {name}, which is not installed", allow_module_level=True)


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            pytest.importorskip(name)


def pytest_pycollect_makemodule(module_path, parent):
    return None if TORCH else TorchFree.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def seeded(request):
    """A test draws its own numbers, the same whatever ran before it, and beside it."""
    seed = zlib.crc32(request.node.nodeid.encode())
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(scope="session")
def small_tokenizer():
    """520 pieces, Chinese and English, exact."""
    from symboliclight.core.tokenizer import train

    return train([t * 20 for t in TEXT], 520).tokenizer


@pytest.fixture(scope="session")
def small_config(small_tokenizer):
    return ModelConfig(vocab_size=small_tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, head_dim=16, d_ff=64,
                       max_seq_len=64, window=16, dropout=0.0)


@pytest.fixture(scope="session")
def small_model(small_config):
    """Random weights, evaluation mode; do not train it."""
    torch = pytest.importorskip("torch")
    import symboliclight

    torch.manual_seed(0)
    return symboliclight.build(small_config).eval()


@pytest.fixture(scope="session")
def small_shards(small_tokenizer, tmp_path_factory):
    """Two domains, English and Chinese, of 120 short documents each."""
    from symboliclight.data import build_corpus, build_shards
    from symboliclight.data.corpus import CorpusOptions

    folder = tmp_path_factory.mktemp("small")
    sources = {}
    for name, text in (("english", TEXT[0]), ("chinese", TEXT[1])):
        sources[name] = [folder / f"{name}.jsonl"]
        lines = [json.dumps({"text": f"{i}: {text * (1 + i % 3)}"}) for i in range(120)]
        sources[name][0].write_text("\n".join(lines), encoding="utf-8")
    corpus = build_corpus(sources, folder / "corpus", CorpusOptions(validation=0.2, test=0.1))
    return build_shards(corpus, small_tokenizer, folder / "shards", threads=1)


@pytest.fixture(scope="session")
def first_weights():
    """Configuration -> the weights of a new model; where there is no PyTorch, some like those."""
    def weights(config):
        if TORCH:
            import symboliclight

            return symboliclight.build(config).state_dict()
        from symboliclight.engine.layout import checkpoint_shapes

        rng = np.random.default_rng(0)
        return {name: rng.normal(name.endswith("norm.weight"), 0.1, shape).astype(np.float32)
                for name, shape in checkpoint_shapes(config).items()}
    return weights


@pytest.fixture(scope="session")
def small_checkpoint(request, small_config, first_weights, small_tokenizer, tmp_path_factory):
    """A folder with `small_model` and its tokenizer; where there is no PyTorch, with `first_weights`."""
    from symboliclight.core import checkpoint

    weights = request.getfixturevalue("small_model").state_dict() if TORCH else first_weights(small_config)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    checkpoint.save(folder, small_config, weights, small_tokenizer)
    return folder


@pytest.fixture(scope="session")
def small_runner(request, small_checkpoint):
    """`small_model`; where there is no PyTorch, the runtime on `small_checkpoint`."""
    from symboliclight import engine

    return request.getfixturevalue("small_model") if TORCH else engine.load(small_checkpoint)


@pytest.fixture
def run(small_config, small_shards):
    """A training run of twenty steps."""
    pytest.importorskip("torch")
    from training import CONFIG

    return RunConfig(small_config, DataConfig(str(small_shards.path), seq_len=32), CONFIG)


@pytest.fixture
def one_thread():
    """Small tensors gain nothing from more, and lose much on a busy machine."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
