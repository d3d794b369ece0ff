"""`--set section.field=value`: single fields of a configuration from the command line."""

import json
from typing import Any

from symboliclight.core.errors import InputError


def parse(items: list[str]) -> dict[str, Any]:
    """Field -> value; a value is JSON, else text. Raises `InputError` for what is not FIELD=VALUE."""
    fields: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"--set {item} must look like FIELD=VALUE, e.g. model.ffn=gelu")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        fields[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return fields
