"""Training: one optimiser step, and a run that can be killed at any moment and goes on where it was."""

from symboliclight.train.loop import Result, train
from symboliclight.train.step import StepResult, step
from symboliclight.train.validate import validate

__all__ = ["Result", "StepResult", "step", "train", "validate"]
