"""What the text of a request must match, under the names of OpenAI's API, of vLLM and of llama.cpp's server."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.generate.constraint import Kind

Form = tuple[Kind, str]
ANY_OBJECT = '{"type": "object"}'


def form_of(body: Mapping[str, Any]) -> Form | None:
    """The form that a request asks for; None: any text. Raises `InputError` for what is no form, and for two."""
    found = {name: form for name, read in READ.items()
             if (form := read(name, body[name]) if body.get(name) is not None else None) is not None}
    if len(found) > 1:
        raise InputError(f"{' and '.join(found)} both say what the text must match; give one of them")
    return next(iter(found.values()), None)


def _schema(name: str, value: Any) -> Form | None:
    """A JSON schema, as an object or as its text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value else {}
        except ValueError as error:
            raise InputError(f"{name} must be a JSON schema: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a JSON schema, an object, got {value!r:.60}")
    return ("json", json.dumps(value)) if value else None


def _text(kind: Kind) -> Callable[[str, Any], Form | None]:
    def read(name: str, value: Any) -> Form | None:
        if not isinstance(value, str):
            raise InputError(f"{name} must be text, got {value!r:.60}")
        return (kind, value) if value else None
    return read


def _choice(name: str, value: Any) -> Form | None:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise InputError(f"{name} must be a list of texts, none of them empty, got {value!r:.60}")
    return ("choice", json.dumps(value)) if value else None


def _format(name: str, value: Any) -> Form | None:
    """OpenAI's: text, json_object (with llama.cpp's `schema`), json_schema."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _schema(f"{name}.schema", value.get("schema") or {}) or ("json", ANY_OBJECT)
    if kind == "json_schema":
        about = value.get("json_schema")
        schema = about.get("schema") if isinstance(about, dict) else value.get("schema")
        return _schema(f"{name}.json_schema.schema", schema) or ("json", "{}")
    raise InputError(f"{name} must have a type of text, json_object or json_schema, got {kind!r:.60}")


def _outputs(name: str, value: Any) -> Form | None:
    """vLLM's: an object with one of json, json_object, regex, choice and grammar."""
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object, got {value!r:.60}")
    unknown = [key for key in value if key not in OUTPUTS and value[key] is not None]
    if unknown:
        raise InputError(f"{name}.{unknown[0]:.60} is not offered here; leave it out")
    try:
        return form_of({OUTPUTS[key]: {"type": "json_object"} if key == "json_object" else one
                        for key, one in value.items() if one not in (None, False)})
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


OUTPUTS = {"json": "guided_json", "json_object": "response_format", "regex": "guided_regex",
           "choice": "guided_choice", "grammar": "guided_grammar"}
READ: Mapping[str, Callable[[str, Any], Form | None]] = {
    "response_format": _format, "json_schema": _schema, "grammar": _text("grammar"), "guided_json": _schema,
    "guided_regex": _text("regex"), "guided_choice": _choice, "guided_grammar": _text("grammar"),
    "structured_outputs": _outputs}
