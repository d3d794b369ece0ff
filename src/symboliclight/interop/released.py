"""Names of the released SymbolicLight V1 checkpoints and ours."""

import re

_RENAMED = [
    (r"spike_encoder\.frontend\.text_embedding\.", "encoder.embedding."),
    (r"spike_encoder\.norm\.", "encoder.norm."),
    (r"blocks\.(\d+)\.tcam\.tcam_proj\.", r"blocks.\1.mixer.tcam."),
    (r"blocks\.(\d+)\.tcam\.out_proj\.", r"blocks.\1.mixer.out."),
    (r"blocks\.(\d+)\.tcam\.sparse_attn\.([qkv])_proj\.", r"blocks.\1.mixer.\2."),
    (r"blocks\.(\d+)\.tcam\.", r"blocks.\1.mixer."),
    (r"output_head\.output_proj\.", "head.out."),
    (r"output_head\.prior_net\.0\.", "head.prior_down."),
    (r"output_head\.prior_net\.2\.", "head.prior_up."),
    (r"output_head\.", "head."),
]
_BUFFER = re.compile(r"rope\.inv_freq$|_cached_mask$|v_mem")
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")


def our_name(released: str) -> str | None:
    """Our parameter name of a released entry, or None for a buffer that is recomputed."""
    name = _PREFIX.sub("", released)
    if _BUFFER.search(name):
        return None
    for pattern, ours in _RENAMED:
        name, changed = re.subn("^" + pattern, ours, name)
        if changed:
            break
    return name
