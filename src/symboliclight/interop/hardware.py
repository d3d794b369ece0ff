"""Published limits of four neuromorphic targets, each with its source. None means that no figure is published.

A core is what holds neurons together with the weights of their inputs: a neurocore, a chip of analogue circuits, a
processing element, a convolution core.
"""

from dataclasses import dataclass
from typing import Literal

SOURCES = {
    "intel-2021": "Intel Labs, Taking Neuromorphic Computing to the Next Level with Loihi 2, technology brief, 2021, "
                  "https://www.intel.com/content/www/us/en/research/neuromorphic-computing-loihi-2-technology-brief.html",
    "lava": "Lava, lava.proc.dense.process.Dense, https://github.com/lava-nc/lava",
    "lava-lif": "Lava, lava.proc.lif.models.PyLifModelBitAcc, https://github.com/lava-nc/lava",
    "pehle-2022": "Pehle et al., The BrainScaleS-2 Accelerated Neuromorphic System With Hybrid Plasticity, "
                  "https://doi.org/10.3389/fnins.2022.795876",
    "spilger-2020": "Spilger et al., hxtorch: PyTorch for BrainScaleS-2, https://arxiv.org/abs/2006.13138",
    "gonzalez-2024": "Gonzalez et al., SpiNNaker2: A Large-Scale Neuromorphic System for Event-Based and Asynchronous "
                     "Machine Learning, https://arxiv.org/abs/2401.04491",
    "hoeppner-2021": "Höppner et al., The SpiNNaker 2 Processing Element Architecture for Hybrid Digital Neuromorphic "
                     "Computing, https://arxiv.org/abs/2103.08392",
    "sinabs-overview": "sinabs documentation, Speck overview, https://sinabs.readthedocs.io",
    "sinabs-memory": "sinabs 3.1.3, validate_memory_speck.py, https://pypi.org/project/sinabs",
}

Scale = Literal["matrix", "core", "channel"]  # weights that share one scale when they are rounded
KI = 1024


@dataclass(frozen=True)
class Limit:
    """A published figure and the key of its source; None: not published, or not a fixed limit."""

    value: int | None
    source: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Target:
    """What one chip offers. Sizes in bytes are those of a whole core: what else it must hold is not published."""

    name: str
    title: str
    cores: Limit  # a chip
    neurons: Limit  # a core; analogue circuits on BrainScaleS-2
    memory: Limit  # bytes a core, for weights and everything else
    fan_in: Limit  # inputs a neuron (a circuit, on BrainScaleS-2)
    weight_bits: Limit
    levels: int  # a weight is one of -levels..levels
    state_bits: Limit
    scale: Scale
    leak: bool  # whether a neuron can keep a constant fraction of its state a step: LIF, decay memory
    graded: bool  # whether events can carry a value, so that a matrix may read continuous inputs
    elsewhere: str  # where what the chip's neurons cannot do is computed
    readout: tuple[str, str]  # how the sum of a neuron that does not spike leaves (empty: it cannot), and the source
    join: bool = False  # neurons may be joined for a larger fan-in
    rows_per_input: int = 1  # synapse rows that one signed input takes
    kernels: tuple[int, ...] = ()  # entries of weight memory of each core, where they differ
    states: tuple[int, ...] = ()  # entries of neuron memory of each core
    fan_out: Limit = Limit(None)  # cores that a core can send to


TARGETS = {t.name: t for t in (
    Target("loihi2", "Intel Loihi 2", cores=Limit(128, "intel-2021"), neurons=Limit(8192, "intel-2021"),
           memory=Limit(192 * KI, "intel-2021", "shared by weights, states, routing and microcode"),
           fan_in=Limit(None, note="bounded by memory; no figure is published"),
           weight_bits=Limit(8, "lava"), levels=127, state_bits=Limit(24, "lava-lif"), scale="core", leak=True,
           graded=True, elsewhere="host", readout=("graded events", "intel-2021")),
    Target("brainscales2", "BrainScaleS-2", cores=Limit(1, "pehle-2022", "a chip is one array"),
           neurons=Limit(512, "pehle-2022", "analogue circuits"), memory=Limit(None, note="131,072 synapse circuits"),
           fan_in=Limit(256, "pehle-2022", "synapses a circuit; circuits can be joined"),
           weight_bits=Limit(6, "pehle-2022", "unsigned; the sign belongs to the row"), levels=63,
           state_bits=Limit(None, note="analogue"), scale="matrix", leak=True, graded=False, elsewhere="host",
           readout=("converters of 8 bits at every column", "pehle-2022"), join=True, rows_per_input=2),
    Target("spinnaker2", "SpiNNaker2", cores=Limit(152, "gonzalez-2024"),
           neurons=Limit(None, note="software; bounded by memory"),
           memory=Limit(128 * KI, "hoeppner-2021", "shared by program, weights and states"),
           fan_in=Limit(None, note="software; bounded by memory"),
           weight_bits=Limit(8, "hoeppner-2021", "operands of the multiply-accumulate array"), levels=127,
           state_bits=Limit(32, "hoeppner-2021", "words of its Arm cores"), scale="channel", leak=True, graded=True,
           elsewhere="its Arm cores, or host", readout=("packets with a payload", "gonzalez-2024")),
    Target("speck", "SynSense Speck", cores=Limit(9, "sinabs-overview"),
           neurons=Limit(None, note="neuron memory of each core differs"),
           memory=Limit(None, note="weight memory of each core differs"),
           fan_in=Limit(1024, "sinabs-overview", "input channels of a 1x1 convolution"),
           weight_bits=Limit(8, "sinabs-overview"), levels=127, state_bits=Limit(16, "sinabs-overview"), scale="core",
           leak=False, graded=False, elsewhere="host", readout=("", "sinabs-overview"),
           kernels=tuple(n * KI for n in (16, 16, 16, 32, 32, 64, 64, 16, 16)),  # sinabs-memory
           states=tuple(n * KI for n in (64, 64, 64, 32, 32, 16, 16, 16, 16)),  # sinabs-memory
           fan_out=Limit(2, "sinabs-overview")),
)}
