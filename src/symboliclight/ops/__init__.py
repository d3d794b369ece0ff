"""The operations that make the model, each beside the slow loop that specifies it.

Every op is one module: `<op>_loop` is the specification, `<op>` the form that runs, registered with
`torch.library` so that a device may bring its own kernel. Dimensions: B batch, T tokens, D d_model, H heads,
K head_dim, F d_ff, V vocabulary, W window, A anchors. Spikes are 0/1 in the dtype of their input.
"""

from symboliclight.ops.blend import blend
from symboliclight.ops.conv import causal_conv, causal_conv_loop
from symboliclight.ops.cuda import cuda_forms
from symboliclight.ops.decay import decay_scan, decay_scan_loop
from symboliclight.ops.dropout import dropout
from symboliclight.ops.events import event_linear, event_linear_loop
from symboliclight.ops.gated import gated_scan, gated_scan_loop
from symboliclight.ops.lif import lif_scan, lif_scan_loop
from symboliclight.ops.linears import linears
from symboliclight.ops.loss import linear_cross_entropy, linear_cross_entropy_loop
from symboliclight.ops.native import forms, torch_forms
from symboliclight.ops.pair import pairs, spiking_pair, spiking_pair_loop
from symboliclight.ops.rope import rope
from symboliclight.ops.spike import spike, surrogate, topk_mask
from symboliclight.ops.window import window_attention, window_attention_loop

__all__ = [
    "blend", "causal_conv", "causal_conv_loop", "cuda_forms", "decay_scan", "decay_scan_loop", "dropout",
    "event_linear", "event_linear_loop", "forms", "gated_scan", "gated_scan_loop", "lif_scan", "lif_scan_loop",
    "linear_cross_entropy", "linear_cross_entropy_loop", "linears", "pairs", "rope", "spike", "spiking_pair",
    "spiking_pair_loop", "surrogate", "topk_mask", "torch_forms", "window_attention", "window_attention_loop",
]
