"""Published checkpoints: files of exactly their format become folders; anything else is refused and nothing runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import symboliclight
from golden_cases import CASES, GOLDEN, config_of, golden_weight
from symboliclight import engine
from symboliclight.commands.cli import main
from symboliclight.core import checkpoint
from symboliclight.interop import released

FIELDS = {"embed_dim": "d_model", "intermediate_dim": "d_ff", "spike_threshold": "v_threshold", "leak_factor": "leak",
          "rope_theta": "rope_base", "sparse_attn_window": "window", "n_global_anchors": "n_anchors"}
SHRUNK = {57_344: 600, 48_000: 600, 1536: 48, 768: 24, 6144: 64, 4096: 64, 384: 12, 192: 6, 512: 8, 32: 1}


def released_config(config, **changes):
    """The config as a release writes it."""
    same = {name: getattr(config, name) for name in ("vocab_size", "n_layers", "n_heads", "head_dim", "max_seq_len")}
    switches = {"enable_sparse_attn": config.paths == "both", "enable_dynamic_prior": config.prior == "dynamic",
                "enable_entropy_exit": False, "entropy_exit_threshold": 0.3, "spike_chunk_size": 64,
                "frontend_mode": "text", "dropout": 0.1}
    return {**same, **{new: getattr(config, ours) for new, ours in FIELDS.items()}, **switches, **changes}


def golden_file(path, case, key="model", prefix="", buffers=False, **changes):
    state = {n: torch.from_numpy(golden_weight(n, k, case["shapes"][n])).float()
             for k, n in enumerate(case["state_dict_order"])}
    if buffers:
        state |= {"spike_encoder.v_mem": torch.zeros(1, 3), "blocks.0.tcam.sparse_attn.rope.inv_freq": torch.ones(4),
                  "blocks.0.tcam.sparse_attn._cached_mask": torch.ones(8, 8, dtype=torch.bool)}
    state = {prefix + name: value for name, value in state.items()}
    torch.save({"config": released_config(config_of(case)) | changes, key: state, "global_step": 3}, path)
    return path


def shrunk_file(path, listing, heads):
    """Every entry of a released checkpoint, buffers included, with smaller matrices."""
    entries = json.loads((GOLDEN / listing).read_text())["state_dict"]
    torch.manual_seed(0)
    state = {name: torch.randn([SHRUNK.get(n, n) for n in shape]).to(getattr(torch, dtype))
             for name, (shape, dtype) in entries.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    config = symboliclight.ModelConfig(vocab_size=600, d_model=2 * heads, n_layers=layers, n_heads=heads, head_dim=2,
                                       d_ff=64, window=8, max_seq_len=8)
    torch.save({"config": released_config(config), "model": state}, path)
    return state


@pytest.mark.parametrize(("key", "prefix", "buffers"), [
    ("model", "", False), ("model_state_dict", "module.", True), ("model", "_orig_mod.module.", True)])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["head"])
def test_golden_files_give_the_golden_logits_in_torch_and_in_the_runtime(case, key, prefix, buffers, tmp_path, call):
    call(golden_file(tmp_path / "g.pt", case, key, prefix, buffers))
    model, tokenizer = symboliclight.load(tmp_path / "out")
    assert tokenizer is None
    tokens = torch.tensor([case["tokens"]])
    with torch.no_grad():
        torch_logits = model(tokens)[0][0].numpy()
    runtime_logits = engine.load(tmp_path / "out", threads=1)(tokens.numpy())[0][0]
    for logits in (torch_logits, runtime_logits):
        np.testing.assert_allclose(logits[:, :8], case["logits_first8"], rtol=0, atol=1e-5)
        assert logits.argmax(-1).tolist() == case["argmax"]


@pytest.mark.parametrize(("listing", "heads", "learned"), [
    ("state_dict_194m.json", 12, False), ("state_dict_08b.json", 24, True)])
def test_every_entry_of_a_release_arrives_unchanged(listing, heads, learned, tmp_path, call):
    state = shrunk_file(tmp_path / "small.pt", listing, heads)
    figures = json.loads(call(tmp_path / "small.pt", "--json"))
    config, tensors = checkpoint.load(tmp_path / "out")
    expected = {released.our_name(name): value for name, value in state.items() if released.our_name(name)}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert config.learn_prior_weight == learned and config.prior_weight == 0.1
    assert figures["parameters"] == sum(value.numel() for value in expected.values())


def test_the_config_keeps_its_values(tmp_path, call):
    case = CASES[4]
    call(golden_file(tmp_path / "g.pt", case, enable_entropy_exit=True, entropy_exit_threshold=0.25, leak_factor=0.5,
                     max_seq_len=77, rope_theta=500.0, dropout=0.2))
    found = checkpoint.load(tmp_path / "out")[0]
    assert (found.exit_entropy, found.leak, found.max_seq_len) == (0.25, 0.5, 77)
    assert (found.rope_base, found.dropout) == (500, 0.2)
    assert (found.v_threshold, found.window, found.n_anchors) == (2.1, 8, 2)


def test_released_and_our_names_are_each_others_inverse():
    for listing in ("state_dict_194m.json", "state_dict_08b.json"):
        for name in json.loads((GOLDEN / listing).read_text())["state_dict"]:
            ours = released.our_name(f"module._orig_mod.{name}")
            assert ours is None or released.released_name(ours) == name


# the tokenizer

@pytest.fixture
def worded(tmp_path, small_config, small_model, small_tokenizer):
    """A released file whose vocabulary is that of the small tokenizer."""
    state = {released.released_name(name): value for name, value in small_model.state_dict().items()}
    torch.save({"config": released_config(small_config), "model": state}, tmp_path / "worded.pt")
    small_tokenizer.save(tmp_path / "sl_tokenizer.model")
    return tmp_path / "worded.pt"


def test_with_a_tokenizer_the_folder_writes_text(worded, tmp_path, call, capsys, small_model, small_tokenizer):
    assert "520 pieces" in call(worded, "--tokenizer", tmp_path / "sl_tokenizer.model")
    model, tokenizer = symboliclight.load(tmp_path / "out")
    assert tokenizer.hash == small_tokenizer.hash
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in small_model.state_dict().items())
    for extra in ([], ["--precision", "int8"]):
        assert main(["generate", "the", "--model", str(tmp_path / "out"), "--max-tokens", "3", *extra]) == 0
        assert capsys.readouterr().out.startswith("the")


def test_without_a_tokenizer_only_text_is_refused(worded, tmp_path, call, capsys):
    assert "logits only" in call(worded)
    out = str(tmp_path / "out")
    for command in (["generate", "the", "--model", out], ["generate", "the", "--model", out, "--precision", "float32"],
                    ["eval", "--text", str(worded), "--model", out]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "has no tokenizer.model, so it takes no text" in err and err.count("\n") == 1
    assert main(["info", "--model", out]) == 0
    assert "encoder.embedding" in capsys.readouterr().out
    (tmp_path / "sl_tokenizer.model").rename(tmp_path / "out" / "tokenizer.model")
    assert main(["generate", "the", "--model", out, "--max-tokens", "3"]) == 0


@pytest.mark.parametrize("vocab_size", [519, 600])
def test_a_tokenizer_of_the_wrong_size_is_refused(vocab_size, tmp_path, call, small_tokenizer):
    small_tokenizer.save(tmp_path / "t.model")
    case = CASES[0]
    shapes = {n: [vocab_size if x == 97 else x for x in shape] for n, shape in case["shapes"].items()}
    resized = {**case, "shapes": shapes, "config": {**case["config"], "vocab_size": vocab_size}}
    call(golden_file(tmp_path / "g.pt", resized), "--tokenizer", tmp_path / "t.model", refused="520 pieces")


def test_a_damaged_tokenizer_is_refused(golden, tmp_path, call):
    (tmp_path / "t.model").write_bytes(b"nonsense")
    call(golden, "--tokenizer", tmp_path / "t.model", refused="t.model is not a SentencePiece model")


# memory

PEAK = """
import sys
from pathlib import Path
from symboliclight.commands.cli import main
code = main(["import", *sys.argv[1:]])
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak_memory(entries, config, folder):
    """Bytes of weights in a file made of `entries`, and the most memory that importing it in a fresh process took."""
    file = folder / "large.pt"
    state = {name: torch.full(shape, 0.5, dtype=getattr(torch, dtype)) for name, (shape, dtype) in entries.items()}
    torch.save({"config": released_config(config), "model": state}, file)
    del state
    done = subprocess.run([sys.executable, "-c", PEAK, str(file), "--out", str(folder / "out")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file.unlink()
    return (folder / "out" / "model.safetensors").stat().st_size, 1024 * int(done.stdout.splitlines()[-1])


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


@needs_proc
def test_a_194m_file_needs_at_most_1_3_times_its_weights(tmp_path):
    """All told, with the interpreter and torch."""
    entries = json.loads((GOLDEN / "state_dict_194m.json").read_text())["state_dict"]
    weights, peak = peak_memory(entries, symboliclight.preset("v1-194m"), tmp_path)
    assert weights > 4 * 194_016_924
    assert peak < 1.3 * weights


@needs_proc
def test_memory_grows_with_the_largest_block_and_not_with_the_model(tmp_path):
    peaks = []
    for layers in (1, 8):
        config = symboliclight.ModelConfig(vocab_size=600, d_model=256, n_layers=layers, n_heads=4, d_ff=4096)
        with torch.device("meta"):
            model = symboliclight.build(config)
        entries = {released.released_name(n): (list(p.shape), "float32") for n, p in model.named_parameters()}
        peaks.append(peak_memory(entries, config, tmp_path))
    (few, first), (many, second) = peaks
    assert second - first < 0.3 * (many - few)  # bytes
