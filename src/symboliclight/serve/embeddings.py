"""`/v1/embeddings`, in the shape of OpenAI's API: the mean of the stream of each text."""

import base64
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.generate.embedding import embedding
from symboliclight.serve.requests import MOST, check_length, prompts_of

FORMATS = ("float", "base64")


def embeddings(body: Any, model: Any, tokenizer: Tokenizer, name: str, max_prompt: int | None) -> dict[str, Any]:
    """{"input": text, ids, or a list of either} -> a vector of length 1 for each. Raises `InputError` by the field."""
    if not isinstance(body, dict) or body.get("input") is None:
        raise InputError("the body must be a JSON object with input: text, ids, or a list of either")
    for field, value in body.items():
        if field not in ("input", "model", "user", "encoding_format") and value is not None:
            raise InputError(f"{field:.60} is not known here; leave it out")
    form = body.get("encoding_format") or "float"
    if form not in FORMATS:
        raise InputError(f"encoding_format must be {' or '.join(FORMATS)}, got {form!r:.60}")
    texts = [ids if ids[0] == tokenizer.bos_id else [tokenizer.bos_id, *ids]
             for ids in prompts_of(body["input"], tokenizer, "input")]
    if len(texts) > MOST or any(len(ids) < 2 for ids in texts):
        raise InputError(f"input must be at most {MOST} texts, none of them empty")
    check_length(texts, max_prompt)
    limit = getattr(model, "context_limit", None)
    check_length(texts, limit)
    data = [{"object": "embedding", "index": i, "embedding": _told(embedding(model, ids), form)}
            for i, ids in enumerate(texts)]
    read = sum(map(len, texts))
    return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": read, "total_tokens": read}}


def _told(vector: np.ndarray, form: str) -> Any:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
