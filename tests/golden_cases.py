"""The golden cases (tests/golden/README.md): configurations and weights, for tests with PyTorch and without."""

import json
import math
from pathlib import Path

import numpy as np

from symboliclight.core.config import ModelConfig
from symboliclight.interop.released import our_name

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "v1_tiny.json").read_text())


def config_of(case) -> ModelConfig:
    given = case["config"]
    return ModelConfig(
        vocab_size=given["vocab_size"], d_model=given["d_model"], n_layers=given["n_layers"], n_heads=given["n_heads"],
        head_dim=given["head_dim"], d_ff=given["d_ff"], v_threshold=given.get("spike_threshold", given["threshold"]),
        leak=given["leak"], v_clamp=given["clamp"], rope_base=given["rope_theta"], window=given["window"],
        n_anchors=given["n_anchors"], dropout=given["dropout"],
        prior="dynamic" if given.get("enable_dynamic_prior", True) else "static",
        paths="both" if given.get("enable_sparse_attn", True) else "decay",
        learn_prior_weight="output_head.prior_weight" in case["state_dict_order"],
    )


def golden_weight(name: str, k: int, shape: list[int]) -> np.ndarray:
    i = np.arange(math.prod(shape), dtype=np.float64)
    s = np.sin(0.7310585 * i + 1.618034 * k + 0.05 * (i % 11)).reshape(shape)
    rules = {"norm.weight": 1 + 0.2 * s, "norm.bias": 0.1 * s, "decay_raw": 3 + s, "attn_gate": 0.5 + 0.3 * s,
             "prior_weight": 0.3 + 0.1 * s, "text_embedding.weight": s, "log_prior": s}
    return np.asarray(next((value for end, value in rules.items() if name.endswith(end)), 0.25 * s))


def golden_weights(case) -> dict[str, np.ndarray]:
    """Our name -> float64 weights."""
    weights = {our_name(n): golden_weight(n, k, case["shapes"][n]) for k, n in enumerate(case["state_dict_order"])}
    if config_of(case).paths == "decay":  # the released file carries the fuse gate, which one path alone never reads
        weights = {n: w for n, w in weights.items() if not n.endswith("attn_gate")}
    return weights
