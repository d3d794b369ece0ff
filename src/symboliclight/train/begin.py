"""Where a run begins that goes on from the weights of another: a second phase, or a fine-tuned model."""

from torch import nn

from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.data import Shards


def begin_with(model: nn.Module, directory: str, shards: Shards) -> None:
    """Give `model` the weights in `directory`, a model folder or a run, of which it takes the last.

    Raises `InputError` if they are of other names or shapes, or were trained with another tokenizer than the data has.
    """
    folder = checkpoint.locate(directory)
    _, tensors = checkpoint.load(folder)
    checkpoint.check_tensors(folder / checkpoint.MODEL, tensors, model.state_dict())
    tokenizer = checkpoint.load_tokenizer(folder)
    if tokenizer is None or tokenizer.hash != shards.tokenizer_hash:
        raise InputError(f"{folder} was trained with another tokenizer than {shards.path}; write the shards again with "
                         f"--tokenizer {folder / checkpoint.TOKENIZER}")
    model.load_state_dict(tensors)
