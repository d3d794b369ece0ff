"""A checkpoint of symboliclight -> a folder that transformers loads, with or without this package."""

import os
import shutil
from pathlib import Path

from symboliclight.core import checkpoint
from symboliclight.core.atomic import remedy
from symboliclight.core.config import to_dict
from symboliclight.core.errors import InputError
from symboliclight.interop.transformers.card import model_card, read_evaluation
from symboliclight.interop.transformers.configuration import SymbolicLightConfig
from symboliclight.interop.transformers.modeling import SymbolicLightForCausalLM
from symboliclight.interop.transformers.tokenization import SymbolicLightTokenizer

CARD = "README.md"


def from_checkpoint(directory: str | Path) -> SymbolicLightForCausalLM:
    """The model of a checkpoint or run folder, in evaluation mode. Raises `InputError` as `symboliclight.load` does."""
    directory = checkpoint.locate(directory)
    config, tensors = checkpoint.load(directory)
    if config.family != "symboliclight":
        raise InputError(f"{directory} is a GPT-2 baseline: its tensors have the names of GPT2LMHeadModel already; "
                         "load them there")
    model = SymbolicLightForCausalLM(SymbolicLightConfig(model=to_dict(config)))
    checkpoint.check_tensors(directory / checkpoint.MODEL, tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.eval()


def export(directory: str | Path, out: str | Path, evaluation: str | Path | None = None) -> Path:
    """Write model, tokenizer, code and card into the folder `out`, whole or not at all; a model there is replaced.

    `evaluation` is a file of `symboliclight eval --out` for the card. Raises `InputError` for a bad checkpoint, a
    tokenizer that has no fast form, an evaluation of another model, or an `out` that holds something else.
    """
    directory, out = checkpoint.locate(directory), Path(out)
    if out.exists() and not (out / checkpoint.CONFIG).is_file():
        raise InputError(f"{out} exists and is not a model; choose another --out")
    model = from_checkpoint(directory)
    original = checkpoint.load_tokenizer(directory)
    if original is None:
        raise InputError(f"{directory} has no tokenizer; import it again with --tokenizer")
    core = model.config.core()
    measured = None if evaluation is None else read_evaluation(evaluation, core, original)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        SymbolicLightTokenizer.from_sentencepiece(directory).save_pretrained(partial)
        card = model_card(out.resolve().name, model.num_parameters(), model.initial_state(1).nbytes, core, measured)
        (partial / CARD).write_text(card, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; "
                         + remedy(error, "choose another --out")) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out
