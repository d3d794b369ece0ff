"""What is asked of the runtime: less where AVX2 is all that the processor has, or is let use, but more of it."""

from symboliclight.engine.model import Engine

TIMES_LLAMA = {"int8": 2.8, "int4": 2.4, "certified": 3.0}  # on AVX2 alone, where spikes feed two matrices of a block


def decode(engine: Engine) -> float | None:
    """Times the decode speed of llama.cpp on GPT-2 201M at as many bits."""
    if engine.isa != "avx2" or engine.config.spike_fed:
        return 3.0
    return TIMES_LLAMA.get(engine.precision)


def prefill(engine: Engine) -> float | None:
    """Times the speed at which llama.cpp reads a prompt."""
    return 1.0 if engine.isa == "avx2" else None


def batch(engine: Engine) -> float:
    """Times the speed of a single text for 16 at 8 bits."""
    return 4.0 if engine.isa == "avx2" else 5.0
