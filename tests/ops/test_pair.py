"""Two matrices with spikes between them, in pieces, against the loop; and several matrices of one input."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from forms import Form, agree, close, normal, run, scattered

from symboliclight.model import ffn
from symboliclight.model.ffn import FeedForward
from symboliclight.ops import events, linears, native, pair, pairs, spiking_pair, spiking_pair_loop

pytestmark = pytest.mark.skipif(not native.built(), reason="no native build here")


@pytest.fixture(params=[1.0, 0.0], ids=["gathered", "dense"])
def _form(request, monkeypatch):
    monkeypatch.setattr(events, "break_even", lambda dtype: request.param)


def inputs(shape):
    """In eighths, so that potentials are exact in float32 and some lie on the threshold."""
    tensors = [normal(*shape, 23), normal(41, 23, seed=1), normal(17, 41, seed=2)]
    return [(x.double() * 8).round() / 8 for x in tensors]


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("shape", [(1,), (2, 63), (500,)], ids=str)
def test_output_and_gradients_are_those_of_the_loop(shape):
    tensors, options = inputs(shape), (torch.tensor(1.0), 2.0)
    expected, expected_grads = run(spiking_pair_loop, [*tensors, options[0].double()], options[1:])
    narrow = [scattered(x.float()) for x in tensors]
    outputs, grads = run(lambda x, up, down: spiking_pair(x, up, down, *options), narrow, ())
    close(outputs[0], expected[0], 1e-5)
    for grad, other in zip(grads, expected_grads, strict=False):
        close(grad, other, 3e-5)


def test_it_serves_training_in_float32_alone(monkeypatch):
    monkeypatch.setattr(pair, "break_even", lambda dtype: 0.1)
    x = normal(3, 4)
    assert pairs(x) and not pairs(x.bfloat16())
    with torch.no_grad():
        assert not pairs(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pairs(x)
    monkeypatch.setattr(pair, "break_even", lambda dtype: 0.0)
    assert not pairs(x)


def test_matrices_of_one_input_are_products_each():
    def loop(x, *weights):
        return tuple(F.linear(x, w) for w in weights)

    tensors = [scattered(normal(2, 31, 12)), *(normal(n, 12, seed=n) for n in (5, 7, 12))]
    agree(Form("native"), lambda x, *weights: tuple(linears(x, weights)), loop, tensors)


def test_a_block_takes_the_pair_unless_its_units_are_watched(small_config, monkeypatch):
    monkeypatch.setattr(pair, "break_even", lambda dtype: 0.1)
    torch.manual_seed(0)
    block = FeedForward(replace(small_config, init_std=0.5)).train()
    taken = []
    monkeypatch.setattr(ffn, "spiking_pair", lambda *inputs: taken.append(1) or spiking_pair(*inputs))

    def gradients():
        x = normal(2, 40, 32).requires_grad_()
        y = block(x)
        return torch.autograd.grad(y.square().sum(), [x, *block.parameters()])

    fast = gradients()
    block.activation.register_forward_hook(lambda *_: None)
    slow = gradients()
    assert taken == [1]
    for one, other in zip(fast, slow, strict=True):
        close(one, other, 1e-4)
