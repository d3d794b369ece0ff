"""What this processor says of itself, and how far the user lets the native code go.

SYMBOLICLIGHT_MAX_ISA=avx2 makes kernels and runtime behave as on a processor that has AVX2 alone, as
ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and MKL_ENABLE_INSTRUCTIONS=AVX2 (products in float32) do for torch.
"""

import importlib
import os
import platform
from pathlib import Path
from typing import Any

from symboliclight.errors import InputError

MAX_ISA = "SYMBOLICLIGHT_MAX_ISA"
_CAPS = (MAX_ISA, "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
ISAS = ("portable", "avx2", "avxvnni", "avx512", "vnni", "amx")  # from the plainest to the fastest, as csrc/isa.hpp


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
