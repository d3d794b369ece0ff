"""`ModelConfig` in the form that transformers keeps: its fields are attributes, its file is one of our config.json."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import PretrainedConfig

from symboliclight.core.config import FORMAT, ModelConfig, from_dict, to_dict
from symboliclight.core.errors import InputError
from symboliclight.interop.transformers.bundle import source_code

CODE = "modeling_symboliclight"  # the module in a saved folder that defines everything again, without the package


class SymbolicLightConfig(PretrainedConfig):
    """All fields of `ModelConfig`, by their names, as keywords and attributes; `core()` gives it back.

    The saved config.json holds them under "model", as every checkpoint of symboliclight does. Raises `InputError`
    (a ValueError) for unknown or wrong fields and for a file of a newer format.
    """

    model_type = "symboliclight"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]
    attribute_map: ClassVar = {
        "hidden_size": "d_model", "intermediate_size": "d_ff", "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads", "max_position_embeddings": "max_seq_len",
    }

    def __init__(self, model: dict[str, Any] | None = None, format: int = FORMAT, **kwargs: Any) -> None:
        if format > FORMAT:
            raise InputError(f"config.json has format {format}, this version reads up to {FORMAT}; upgrade")
        known = {f.name for f in fields(ModelConfig)}
        named = {self.attribute_map.get(name, name): value for name, value in kwargs.items()}
        core = from_dict(ModelConfig, (model or {}) | {name: named[name] for name in named if name in known}, "model")
        for name, value in to_dict(core).items():
            setattr(self, name, value)
        rest = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
        super().__init__(**rest | {name: value for name, value in named.items() if name not in known})

    def core(self) -> ModelConfig:
        """The same as a `ModelConfig`, checked."""
        return from_dict(ModelConfig, {f.name: getattr(self, f.name) for f in fields(ModelConfig)}, "model")

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write config.json and the code that it names, which loads the folder where symboliclight is not installed."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        Path(save_directory, f"{CODE}.py").write_text(source_code(), encoding="utf-8")
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the fields of the model under "model"."""
        core = to_dict(self.core())
        out = {name: value for name, value in super().to_dict().items() if name not in core}
        auto_map = {"AutoConfig": f"{CODE}.SymbolicLightConfig",
                    "AutoModelForCausalLM": f"{CODE}.SymbolicLightForCausalLM"}
        return out | {"format": FORMAT, "model": core, "auto_map": auto_map}
