"""Triton kernels without a GPU: interpreted against the loops, and compiled to look at the instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
HERE = Path(__file__).parent
TESTS = ["test_lif.py", "test_decay.py", "test_spike.py", "test_rope.py", "test_loss.py", "test_window_inference.py"]
CPU_ONLY = ["native_form", "no_tensor_holds", "makes_no_gradient"]  # what CPU forms do bit by bit, and their memory


def test_interpreted_kernels_pass_the_tests_of_their_ops():
    """Every test of these ops, with the kernels in the place of the CPU's; interpreting needs its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-k", f"not {' and not '.join(CPU_ONLY)}",
         *(str(HERE / name) for name in TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


def compiled(kernel, floats, flags=None, **options):
    """PTX for an H100 of a kernel whose tensors are float32, as `launch` would compile it."""
    import triton
    from triton.backends.compiler import GPUTarget

    kinds = dict.fromkeys(("T", "D", "K"), "i32") | dict.fromkeys(floats, "fp32")
    constants = {"BLOCK": 64, "STAGES": 8, **(flags or {})}
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def test_membrane_update_is_not_fused_into_one_rounding():
    """A fused multiply-add would move membranes by half a unit in the last place, and spikes at the threshold."""
    from symboliclight.ops.triton_kernels import EXACT, _lif_forward

    assert "fma" in compiled(_lif_forward, ["clamp"])
    exact = compiled(_lif_forward, ["clamp"], **EXACT)
    assert "fma" not in exact
    assert "mul.rn.f32" in exact


@pytest.mark.parametrize("flags", [(False, False), (True, True), (True, False)], ids=["local", "bptt", "bptt_detached"])
def test_backward_kernels_compile_for_a_gpu(flags):
    from symboliclight.ops import triton_kernels as kernels

    modes = dict(zip(("RECURRENT", "ATTACHED"), flags, strict=True), LEARNED=True)
    assert "st.global" in compiled(kernels._lif_backward, ["alpha", "clamp"], modes)


@pytest.mark.parametrize("name", ["_decay_forward", "_decay_backward"])
def test_decay_kernels_compile_for_a_gpu_and_load_ahead(name):
    from symboliclight.ops import triton_kernels as kernels

    assert "st.global" in (code := compiled(getattr(kernels, name), []))
    assert "cp.async" in code


def test_tiles_of_queries_are_multiplied_on_tensor_cores():
    import triton
    from triton.backends.compiler import GPUTarget

    from symboliclight.ops.triton_window import LAUNCH, _window_rows

    constants = {"K": 64, "WIDE": False, "ANCHORS": 16} | {k: LAUNCH[k] for k in ("ROWS", "COLUMNS")}
    kinds = dict.fromkeys(("T", "S", "A", "H", "window"), "i32") | dict.fromkeys(("gate", "anchor_gate"), "*u8")
    kinds |= {"scale": "fp32", "position": "*i64"} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*bf16") for name in _window_rows.arg_names}
    source = triton.compiler.ASTSource(fn=_window_rows, signature=signature, constexprs=constants)
    options = {"num_warps": LAUNCH["num_warps"]}
    assert "wgmma" in triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
