"""What a run computes in: what it began in, else what its device is fast at."""

import warnings
from pathlib import Path
from typing import cast

import torch

from symboliclight.core.config import RunConfig
from symboliclight.core.errors import InputError, Slow
from symboliclight.core.processor import Precision, bfloat16_speed, multiplies_bfloat16, training_precision
from symboliclight.train.distributed import Group
from symboliclight.train.folder import stored_precision


def agreed_precision(run: RunConfig, directory: Path, device: torch.device, group: Group) -> Precision:
    """The precision of `run` in `directory`, the same in all processes of the group.

    Raises `InputError` if the run began in bfloat16, `device` emulates it and `run` leaves the choice open.
    """
    chosen = _precision(run.train.precision, directory, str(device)) if group.leads else "float32"
    return "bfloat16" if group.any(chosen == "bfloat16") else "float32"


def _precision(wanted: str, directory: Path, device: str) -> Precision:
    began = stored_precision(directory)
    if began in (None, "auto", wanted):
        return training_precision(wanted, device)
    if wanted != "auto":
        warnings.warn(f"{directory} was begun in {began} and goes on in {wanted}", Slow, stacklevel=2)
        return training_precision(wanted, device)
    if began == "bfloat16" and not multiplies_bfloat16(device):
        raise InputError(f"{directory} was begun in bfloat16, which this machine emulates, {1 / bfloat16_speed():.0f} "
                         "times slower than float32; give --precision float32 to go on in that, or --precision "
                         "bfloat16 to go on slowly")
    return cast(Precision, began)
