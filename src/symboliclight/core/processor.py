"""What this processor says of itself, how far the user lets the native code go, and whether torch trains in bfloat16.

SYMBOLICLIGHT_MAX_ISA=avx2 makes kernels and runtime behave as on a processor that has AVX2 alone, as
ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and MKL_ENABLE_INSTRUCTIONS=AVX2 (products in float32) do for torch.
"""

import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable
from functools import cache
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from symboliclight.core.errors import InputError, Slow

Precision = Literal["bfloat16", "float32"]

MAX_ISA = "SYMBOLICLIGHT_MAX_ISA"
_CAPS = (MAX_ISA, "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
# From the plainest to the fastest, those of Arm last, as csrc/simd/isa.hpp.
ISAS = ("portable", "avx2", "avxvnni", "avx512", "vnni", "amx", "dotprod", "i8mm")
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # abilities that multiply bfloat16: two of x86-64, one of arm64
EMULATED = 1 / 3  # of the speed of float32, or less: 0.2 was seen with AVX-512 alone, 0.01 to 0.03 with AVX2
PROBE_SIZE, PROBE_SECONDS = 192, 0.004  # rows of a matrix; spent on each dtype
AMPERE = (8, 0)  # compute capability from which on CUDA devices multiply bfloat16


def native_module(name: str) -> Any:
    """The compiled module `_native` or `_engine`.

    Raises `ImportError` where it was not built, `InputError` if SYMBOLICLIGHT_MAX_ISA names no instruction set.
    """
    most = os.environ.get(MAX_ISA)
    if most is not None and most not in ISAS:
        raise InputError(f"{MAX_ISA} is {most!r}; set it to one of {', '.join(ISAS)}, or unset it")
    return importlib.import_module(f"symboliclight.{name}")


def caps() -> dict[str, str]:
    """Environment variables that hold native code or torch below what the processor can do, and their values."""
    return {name: os.environ[name] for name in _CAPS if name in os.environ}


def cpuinfo() -> dict[str, str]:
    """The first processor in /proc/cpuinfo, by field; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def flags() -> set[str]:
    """Names of the processor's abilities, as Linux writes them."""
    info = cpuinfo()
    return set(str(info.get("flags", info.get("Features", ""))).split())


def name() -> str:
    """What the processor is called."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()



def training_precision(wanted: str, device: str = "cpu") -> Precision:
    """The dtype of products in training on `device` (cpu, cuda or cuda:N): `wanted`, or for "auto" bfloat16 where the
    device multiplies it and float32 elsewhere. bfloat16 on a CPU that emulates it is obeyed, with one warning."""
    if wanted == "auto":
        return "bfloat16" if multiplies_bfloat16(device) else "float32"
    if wanted == "bfloat16":
        warn_if_emulated(device)
    return "float32" if wanted == "float32" else "bfloat16"


@cache
def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether `device` multiplies bfloat16: a CPU must say so and show it, since caps and builds of torch hide it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_capability(device) >= AMPERE
    return bool(bfloat16_instructions()) and bfloat16_speed() > EMULATED


def bfloat16_instructions() -> list[str]:
    """Abilities of the processor that multiply bfloat16."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ["bf16"]  # from the M2 on, as the probe tells
    return [name for name in BFLOAT16 if name in flags()]


@cache
def bfloat16_speed() -> float:
    """How many times as fast as in float32 torch multiplies small matrices in bfloat16 on this CPU; measured once.

    On one thread: on a busy machine several wait for each other far longer than they compute.
    """
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
        return _fastest(lambda: a @ a)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds(torch.float32) / seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest run after a first one, of as many as fit into PROBE_SECONDS, but two."""
    run()
    best, begin, runs = inf, perf_counter(), 0
    while runs < 2 or perf_counter() - begin < PROBE_SECONDS:
        start = perf_counter()
        run()
        best, runs = min(best, perf_counter() - start), runs + 1
    return best


@cache
def warn_if_emulated(device: str = "cpu") -> None:
    """One warning, with the measured factor, if products in bfloat16 are emulated on `device`."""
    if device == "cpu" and not multiplies_bfloat16():
        factor = 1 / bfloat16_speed()
        if factor > 1:
            warnings.warn(f"this processor does not multiply bfloat16: products take {factor:.0f} times as long as in "
                          "float32, which --precision float32 (train.precision) chooses", Slow, stacklevel=3)


def precision_facts(device: str = "cpu") -> dict[str, Any]:
    """What "auto" chooses on `device` and why: for run.json, `info` and result files."""
    chosen = training_precision("auto", device)
    if device != "cpu":
        return {"precision": chosen}
    return {"precision": chosen, "bfloat16_instructions": bfloat16_instructions(),
            "bfloat16_speed": float(f"{bfloat16_speed():.2g}")}
