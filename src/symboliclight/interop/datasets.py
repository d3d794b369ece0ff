"""Generated samples as a Hugging Face dataset: `datasets.load_from_disk(DIR)` reads it back.

One row a sample: prompt, text (the continuation), tokens (how many were written), finish, seed, model and settings.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Completion, Sampling


def check_samples_folder(directory: str | Path) -> None:
    """Raise `InputError` if samples cannot be written to `directory`: before they are made, not after."""
    directory = Path(directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(f"{directory} is already there; choose another folder for the samples")
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise InputError("writing a dataset needs `datasets`: pip install 'symboliclight[train]'") from error


def save_samples(directory: str | Path, prompt: str, samples: Sequence[Completion], model: str, how: Sampling,
                 max_tokens: int, stop: Sequence[str], precision: str | None) -> None:
    """Write the samples of one prompt. Raises `InputError` as `check_samples_folder` does, or if writing fails."""
    check_samples_folder(directory)
    from datasets import Dataset, Features, Value, disable_progress_bars

    number, text = Value("int64"), Value("string")
    chosen: dict[str, Any] = {f.name: number if f.type in (int, "int") else Value("float64") for f in fields(Sampling)}
    features = Features({
        "prompt": text, "text": text, "tokens": number, "finish": text, "seed": number, "model": text,
        "settings": {**chosen, "max_tokens": number, "stop": [text], "precision": text},
    })
    settings = {**asdict(how), "max_tokens": max_tokens, "stop": list(stop), "precision": precision}
    rows = [{"prompt": prompt, "text": s.text, "tokens": len(s.ids), "finish": s.finish, "seed": s.seed, "model": model,
             "settings": settings} for s in samples]
    disable_progress_bars()
    try:
        Dataset.from_list(rows, features=features).save_to_disk(str(directory))
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror}; choose another folder") from error
