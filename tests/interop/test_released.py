"""The runtime against numbers computed in float64 from the released definitions (tests/golden/README.md)."""

import numpy as np
import pytest

from golden_cases import CASES, config_of, golden_weights
from symboliclight import _engine
from symboliclight.engine.model import Engine
from symboliclight.engine.weights import from_tensors


@pytest.mark.parametrize("isa", _engine.isas())
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["head"])
def test_golden_cases(case, isa):
    config = config_of(case)
    weights = {name: np.asarray(w, np.float32) for name, w in golden_weights(case).items()}
    engine = Engine(config, from_tensors(config, weights), 2, isa=isa)
    logits, _ = engine(np.array([case["tokens"]]))
    np.testing.assert_allclose(logits[0, :, :8], case["logits_first8"], rtol=0, atol=1e-5)
    assert logits[0].argmax(-1).tolist() == case["argmax"]
    tcam = engine._native.counts()[1]
    assert tcam == [sum(case["encoder_spikes_per_token"])] + [sum(s) for s in case["block_spikes_per_token"][:-1]]
