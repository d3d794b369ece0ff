"""Names, config fields and published files of the SymbolicLight V1 releases, and what they are called here."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from symboliclight.core.config import ModelConfig, from_dict
from symboliclight.core.errors import InputError

REPOSITORY = "SymbolicLight-AGI/SymbolicLight-V1"  # on the Hugging Face hub


@dataclass(frozen=True)
class Published:
    """A weight file with a checksum in the release's own list (CHECKSUMS_SHA256.json of its source repository)."""

    name: str
    path: str  # in REPOSITORY
    bytes: int
    sha256: str


PUBLISHED = (Published("v1-0.8b", "weights/pytorch/latest.pt", 3_500_567_393,
                       "8a3b58523bc46cec0c71e3ca601b22476f05e1498ef39f9668b88a587a8e94dc"),)
FETCH = (  # the path of the 194M files is not in the release's documents, only that their names say 194m
    f"hf download {REPOSITORY} weights/pytorch/latest.pt tokenizer/sl_tokenizer.model --local-dir v1-0.8b",
    f'hf download {REPOSITORY} --include "*194m*" --local-dir v1-194m',
)

_NAMES = [  # (released, ours), the first that begins a name counts; in blocks what follows "blocks.N."
    ("spike_encoder.frontend.text_embedding.", "encoder.embedding."),
    ("spike_encoder.norm.", "encoder.norm."),
    ("tcam.tcam_proj.", "mixer.tcam."),
    ("tcam.out_proj.", "mixer.out."),
    ("tcam.sparse_attn.q_proj.", "mixer.q."),
    ("tcam.sparse_attn.k_proj.", "mixer.k."),
    ("tcam.sparse_attn.v_proj.", "mixer.v."),
    ("tcam.", "mixer."),
    ("output_head.output_proj.", "head.out."),
    ("output_head.prior_net.0.", "head.prior_down."),
    ("output_head.prior_net.2.", "head.prior_up."),
    ("output_head.", "head."),
]
_BUFFER = re.compile(r"rope\.inv_freq$|_cached_mask$|v_mem")
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
_BLOCK = re.compile(r"^blocks\.\d+\.")

_FIELDS = {  # released config field -> ours
    "vocab_size": "vocab_size", "embed_dim": "d_model", "n_layers": "n_layers", "n_heads": "n_heads",
    "head_dim": "head_dim", "intermediate_dim": "d_ff", "max_seq_len": "max_seq_len", "sparse_attn_window": "window",
    "n_global_anchors": "n_anchors", "rope_theta": "rope_base", "dropout": "dropout", "spike_threshold": "v_threshold",
    "leak_factor": "leak",
}
_REQUIRED = ("vocab_size", "embed_dim", "n_layers", "n_heads", "head_dim", "intermediate_dim", "max_seq_len",
             "sparse_attn_window")  # the releases differ in these; in all others they agree with our defaults
_SWITCHES = {"enable_sparse_attn": True, "enable_dynamic_prior": True, "enable_entropy_exit": False,
             "enable_stdp": False, "use_topk_mask": False}
_INERT = ("spike_chunk_size", "stdp_lr", "topk_sparsity", "entropy_exit_threshold", "frontend_mode")
_LARGEST = 1 << 24  # of any whole number in a config: more is damage, and is refused before anything is sized by it


def plain_name(released: str) -> str | None:
    """A released entry's name without wrapper prefixes, or None for a buffer that is recomputed."""
    name = _PREFIX.sub("", released)
    return None if _BUFFER.search(name) else name


def our_name(released: str) -> str | None:
    """Our parameter name of a released entry, or None for a buffer that is recomputed."""
    name = plain_name(released)
    return name and _renamed(name, _NAMES)


def released_name(ours: str) -> str:
    """The released name of one of our parameters."""
    return _renamed(ours, [(new, old) for old, new in _NAMES])


def _renamed(name: str, pairs: list[tuple[str, str]]) -> str:
    block = _BLOCK.match(name)
    start, rest = (block[0], name[block.end():]) if block else ("", name)
    old, new = next(((old, new) for old, new in pairs if rest.startswith(old)), ("", ""))
    return start + new + rest.removeprefix(old)


def config_of(fields: Mapping[str, Any], names: Collection[str], ignore: Collection[str] = ()) -> ModelConfig:
    """Our config of a released config and the plain names of its weights.

    Fields in `ignore` are passed over. Raises `InputError` for missing fields, unknown ones (a later release) and for
    switches that this implementation has no equal of.
    """
    fields = {str(name): value for name, value in fields.items() if name not in ignore}
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        raise InputError(f"the config has no {', '.join(missing)}: not a SymbolicLight V1 checkpoint; "
                         "`symboliclight import` reads no other")
    unknown = sorted(fields.keys() - {*_FIELDS, *_SWITCHES, *_INERT})
    if unknown:
        raise InputError(f"the config has fields that V1 did not have: {', '.join(unknown)}; upgrade symboliclight, or "
                         "pass over those that do not change the model with --ignore-field NAME")
    on = {name: fields.get(name, default) for name, default in _SWITCHES.items()}
    wrong = [name for name, value in on.items() if not isinstance(value, bool)]
    wrong += [name for name, value in fields.items() if type(value) is int and value > _LARGEST]
    if wrong:
        raise InputError(f"the config has nonsense in {', '.join(wrong)}; restore the file from a good copy")
    if fields.get("frontend_mode", "text") != "text" or on["enable_stdp"] or on["use_topk_mask"]:
        raise InputError("the config asks for another frontend than text, for STDP or for the published top-k mask, "
                         "which this model does not have; import a checkpoint without them")
    ours = {new: fields[old] for old, new in _FIELDS.items() if old in fields}
    ours["prior"] = "dynamic" if on["enable_dynamic_prior"] else "static"
    ours["paths"] = "both" if on["enable_sparse_attn"] else "decay"
    ours["learn_prior_weight"] = "output_head.prior_weight" in names
    ours["exit_entropy"] = fields.get("entropy_exit_threshold", 0.3) if on["enable_entropy_exit"] else None
    return from_dict(ModelConfig, ours)
