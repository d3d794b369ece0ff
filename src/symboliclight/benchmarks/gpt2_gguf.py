"""GPT-2 of `model.gpt2` as a GGUF file, so that `bench llama` can run it in llama.cpp. Weights only, no vocabulary."""

from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError

_NAMES = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
          "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
_OUTSIDE = {"wte.weight": "token_embd.weight", "wpe.weight": "position_embd.weight",
            "ln_f.weight": "output_norm.weight", "ln_f.bias": "output_norm.bias"}


def write(model: Any, path: Path, kind: str) -> None:
    """Write a `GPT2`; all matrices but the positions are of one `kind`, as "Q8_0"; vectors stay float32.

    The output layer is the token embedding, which llama.cpp takes where a file has no other.
    Raises `InputError` without the `gguf` package.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError("GGUF files need their package: pip install 'symboliclight[llama]'") from error
    c, quantised = model.config, getattr(gguf.GGMLQuantizationType, kind)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(c.n_layers)
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.d_model)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_head_count(c.n_heads)
    writer.add_layer_norm_eps(model.transformer.config.layer_norm_epsilon)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("none")
    for name, tensor in model.transformer.state_dict().items():
        x = tensor.detach().float().cpu()
        if x.ndim == 2 and name.startswith("h."):
            x = x.T  # GPT-2 keeps its matrices input by output
        whole = x.ndim == 1 or name == "wpe.weight"
        of = gguf.GGMLQuantizationType.F32 if whole else quantised
        writer.add_tensor(tensor_name(name), gguf.quants.quantize(x.contiguous().numpy(), of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_name(name: str) -> str:
    """A name of `transformers.GPT2Model` -> the name in a GGUF file."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    part, what = rest.rsplit(".", 1)
    return f"blk.{layer}.{_NAMES[part]}.{what}"
