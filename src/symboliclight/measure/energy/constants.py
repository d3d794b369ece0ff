"""Picojoules of operations and of memory accesses, by name, with their source.

Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, pp. 10-14,
doi:10.1109/ISSCC.2014.6757323: 45 nm, 0.9 V. Arithmetic is the bare unit, without fetch and control of an
instruction (about 70 pJ there). Memory is that of a 64-bit access: SRAM caches of 8 KB, 32 KB and 1 MB; DRAM from 1.3
to 2.6 nJ.
"""

from dataclasses import dataclass

from symboliclight.core.errors import InputError

SOURCE = "Horowitz, ISSCC 2014, doi:10.1109/ISSCC.2014.6757323, 45 nm at 0.9 V"
ACCESS_BYTES = 8  # the width that the published memory figures are for


@dataclass(frozen=True)
class Arithmetic:
    """One precision: pJ of a product and of a sum, and bytes of a stored value and of a running sum."""

    name: str
    multiply_pj: float
    add_pj: float
    value_bytes: int  # weights, keys, values, activations
    sum_bytes: int  # accumulators, membranes, decay memories

    @property
    def mac_pj(self) -> float:
        """A product and the sum that takes it up."""
        return self.multiply_pj + self.add_pj


@dataclass(frozen=True)
class Memory:
    """Where weights, keys and values lie: pJ of one 64-bit access."""

    name: str
    access_pj: float

    @property
    def byte_pj(self) -> float:
        return self.access_pj / ACCESS_BYTES


ARITHMETIC = {a.name: a for a in (
    Arithmetic("horowitz-45nm-float32", 3.7, 0.9, 4, 4),
    Arithmetic("horowitz-45nm-float16", 1.1, 0.4, 2, 2),
    Arithmetic("horowitz-45nm-int8", 0.2, 0.1, 1, 4),  # 8-bit product; a sum of thousands of them needs 32 bits
)}
MEMORY = {m.name: m for m in (
    Memory("sram-8kb", 10.0), Memory("sram-32kb", 20.0), Memory("sram-1mb", 100.0),
    Memory("dram", 1300.0), Memory("dram-high", 2600.0),
)}


def local(memory: Memory) -> Memory:
    """Where accumulators, membranes, decay memories and activations lie: 32 KB SRAM, or `memory` if that is cheaper."""
    return min(memory, MEMORY["sram-32kb"], key=lambda m: m.access_pj)


def arithmetic(name: str) -> Arithmetic:
    """The named set; an unknown name raises `InputError` with the known ones."""
    if name not in ARITHMETIC:
        raise InputError(f"unknown constants {name!r}; choose from: {', '.join(ARITHMETIC)}")
    return ARITHMETIC[name]
