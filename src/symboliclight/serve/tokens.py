"""Text to ids and back, in the shape of llama.cpp's server."""

from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer


def tokenize(body: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """{"content"} -> {"tokens"}; with `add_special` the bos comes first, with `with_pieces` each has its text."""
    options = _options(body, "content", {"add_special": False, "parse_special": True, "with_pieces": False})
    content = body["content"]
    if not isinstance(content, str):
        raise InputError("content must be text")
    ids = tokenizer.encode(content, bos=options["add_special"], special=options["parse_special"])
    return {"tokens": [{"id": i, "piece": _piece(tokenizer, i)} for i in ids] if options["with_pieces"] else ids}


def detokenize(body: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """{"tokens"} -> {"content"}; bytes that are not UTF-8 become U+FFFD."""
    _options(body, "tokens", {})
    ids = body["tokens"]
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids):
        raise InputError(f"tokens must be a list of ids in 0..{tokenizer.vocab_size - 1}")
    return {"content": tokenizer.decode(ids)}


def _options(body: Any, wanted: str, known: dict[str, bool]) -> dict[str, bool]:
    if not isinstance(body, dict) or wanted not in body:
        raise InputError(f"the body must be a JSON object with {wanted}")
    for name, value in body.items():
        if name in known and not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, got {value!r:.60}")
        if name not in (wanted, "model", *known):
            raise InputError(f"{name:.60} is not known here; leave it out")
    return {name: body.get(name, default) for name, default in known.items()}


def _piece(tokenizer: Tokenizer, index: int) -> str | list[int]:
    """Text of an id, or its bytes where they are no text by themselves."""
    data = tokenizer.piece(index)[1]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
