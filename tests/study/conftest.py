"""A study of very small runs on the small shards."""

import pytest

STUDY = """
[study]
name = "small"
vocab_size = {vocab_size}

[base]
preset = "tiny"
model = {{ d_model = 32, n_layers = 2, n_heads = 2, head_dim = 16, d_ff = 64, max_seq_len = 32, window = 16 }}
train = {{ batch_size = 2, precision = "float32", break_even = 0.125, eval_tokens = 64 }}

[[runs]]
label = "v1"
group = "main"
tokens = 640
seeds = [1, 2]
lr = 3e-3

[[runs]]
label = "gpt2"
group = "main"
preset = "gpt2-tiny"
tokens = 640
seeds = [1, 2]
lr = 3e-3

[[runs]]
label = "gelu-ffn"
group = "ablation"
model = {{ ffn = "gelu" }}
tokens = [320, 640]
seeds = 1
lr = 3e-3

[[runs]]
label = "v1"
group = "sweep"
tokens = [320, 640]
seeds = 7
lr = [1e-3, 2e-3]
"""


@pytest.fixture(scope="session")
def small_study(small_tokenizer):
    """The text of the study file."""
    return STUDY.format(vocab_size=small_tokenizer.vocab_size)


@pytest.fixture
def study_file(tmp_path, small_study):
    path = tmp_path / "study.toml"
    path.write_text(small_study)
    return path
