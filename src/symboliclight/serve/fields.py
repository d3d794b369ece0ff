"""Which fields a request may have: those that are heard, those that change no text, and those that must be off.

Whatever is not listed is refused by name: a field that is passed over would give another text than was asked for.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Sampling
from symboliclight.generate.shift import Shift

SAMPLING = tuple(f.name for f in fields(Sampling))
HEARD = frozenset(f.name for kind in (Sampling, Shift) for f in fields(kind)) | {
    "max_tokens", "max_completion_tokens", "stop", "seed", "n", "stream", "stream_options", "ignore_eos", "logprobs",
    "spikes", "state", "response_format", "json_schema", "grammar", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "structured_outputs"}
ONLY = {False: frozenset({"echo"}), True: frozenset({"top_logprobs"})}  # heard beside them, by whether it is a chat
OF = {False: "prompt", True: "messages"}  # what is continued, by whether it is a chat
SYNONYMS = {"repeat_penalty": "repetition_penalty", "repeat_last_n": "repetition_window", "n_predict": "max_tokens",
            "num_predict": "max_tokens", "max_new_tokens": "max_tokens"}  # of other servers
IDLE = frozenset({"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                  "prompt_cache_retention", "prediction", "parallel_tool_calls", "cache_prompt", "id_slot", "slot_id",
                  "keep_alive", "priority", "request_id"})  # they change no text here, whatever they hold
OFF: Mapping[str, tuple[Any, ...]] = {  # not offered: the values that ask for nothing, beside null
    "top_logprobs": (0,), "n_probs": (0,), "echo": (False,), "suffix": ("",),
    "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "modalities": (["text"],), "reasoning_effort": ("none",), "verbosity": ("medium",),
    "min_tokens": (0,), "length_penalty": (1,), "use_beam_search": (False,), "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,), "bad_words": ([],), "allowed_token_ids": ([],), "logits_processors": ([],),
    "truncate_prompt_tokens": (0,), "prompt_logprobs": (0,), "return_token_ids": (False,), "return_tokens": (False,),
    "typical_p": (1,), "tfs_z": (1,), "top_a": (0,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_n_sigma": (-1, 0),
    "mirostat": (0, False), "mirostat_mode": (0,), "dynatemp_range": (0,), "xtc_probability": (0,),
    "dry_multiplier": (0,), "n_keep": (0,), "n_discard": (0,),
    "post_sampling_probs": (False,), "timings_per_token": (False,), "return_progress": (False,),
    "penalize_nl": (False,), "samplers": ([],), "lora": ([],), "images": ([],),
}
STREAM_OPTIONS = {"include_obfuscation": (False, True), "continuous_usage_stats": (False,)}  # padding of chunks only
MESSAGE = {"tool_calls": ([],), "annotations": ([],), "refusal": ("",)}  # beside role and content


def heard(body: Mapping[str, Any], chat: bool) -> dict[str, Any]:
    """The fields of a request that mean something here, under the names of this server.

    Raises `InputError` that names a field which would change the text and is not offered, or that is not known.
    """
    found: dict[str, Any] = {}
    for name, value in body.items():
        known = SYNONYMS.get(name, name)
        if value is None or name in IDLE:
            continue
        if known in HEARD or known in ONLY[chat] or known == OF[chat]:
            if known in found and found[known] != value:
                raise InputError(f"{name} and another name of {known} differ; give one of them")
            found[known] = value
        elif name == "best_of":
            if not _same(value, body.get("n") or 1):
                raise InputError("best_of is not offered here; leave it out")
        elif name == OF[not chat]:
            path = "/v1/completions" if chat else "/v1/chat/completions"
            raise InputError(f"{name} is a field of {path}; send it there, or give {OF[chat]}")
        else:
            check_off(name, value, OFF, "")
    options = found.get("stream_options")
    for name, value in options.items() if isinstance(options, dict) else ():
        if name != "include_usage":
            check_off(name, value, STREAM_OPTIONS, "stream_options.")
    return found


def check_off(name: str, value: Any, off: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Raise `InputError` unless `value` is null, or asks for nothing in a field that is known."""
    if value is None or any(_same(value, one) for one in off.get(name, ())):
        return
    if name in off:
        raise InputError(f"{where}{name} is not offered here; leave it out")
    near = [] if where else difflib.get_close_matches(name, [*HEARD, *SYNONYMS, *OF.values()], 1)
    hint = f"did you mean {near[0]}?" if near else "leave it out"
    raise InputError(f"{where}{name:.60} is not known here, and might change the text; {hint}")


def _same(value: Any, other: Any) -> bool:
    """Equal, where 0 is not false, and 1 not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
