"""Backward passes against numerical gradients in float64, of every branch and of whole layers."""

from __future__ import annotations

import pytest
import torch
from helpers.support import ToyAttention, dense_attention, seeded
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from ultragen_core.attention import layer as layers
from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import BlockExtras, ExtrasShape, initial_block
from ultragen_core.attention.gate import BlockGates, Gates
from ultragen_core.attention.layer import branch, ultragen_attention
from ultragen_core.attention.rope import rope_table
from ultragen_core.attention.t3 import t3_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.rules.ultragen import block_spec

C, HEADS = 12, 1
GRID = TokenGrid(2, 9, 11)
SWITCHES = {
    "resized": {},
    "antialiased": {"antialias": True},
    "balanced": {"uneven": "balanced"},
    "swin": {"cross_window": "swin", "uneven": "balanced"},
}


class Layer(nn.Module):
    """The modules of one hierarchical layer, float64, with every weight random; `run` says what is computed of it."""

    def __init__(self, run):
        super().__init__()
        self.attn = ToyAttention(C, HEADS)
        shape = ExtrasShape(C, rank=2, refined=True)
        self.extras, self.gates = BlockExtras(shape), BlockGates(C)
        self.extras.load_state_dict(
            {key: value + 0.1 * seeded(*value.shape) for key, value in initial_block(shape).items()}
        )
        self.double().requires_grad_()
        self.forward = run.__get__(self)

    def gates_at(self, t):
        return Gates(self.gates.hierarchical_gate(t), self.gates.global_gate(t))


def assert_gradients(layer: Layer, *inputs: torch.Tensor) -> None:
    """Of the result in the inputs and in every parameter that it depends on."""
    parameters = dict(layer.named_parameters())
    inputs = [x.requires_grad_() for x in inputs]
    used = torch.autograd.grad(layer(*inputs).sum(), list(parameters.values()), allow_unused=True)
    names = [name for name, gradient in zip(parameters, used, strict=True) if gradient is not None]

    def function(*tensors):
        state = dict(zip(names, tensors[len(inputs) :], strict=True))
        return functional_call(layer, state, tuple(tensors[: len(inputs)]))

    assert gradcheck(function, (*inputs, *(parameters[name] for name in names)), fast_mode=True)


def tokens(batch: int = 1, grid: TokenGrid = GRID) -> torch.Tensor:
    return seeded(batch, grid.tokens, C).double()


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("name", ["local", "hierarchical", "global_"])
def test_branch(name, switches):
    spec = getattr(block_spec(1, LocalConfig(**SWITCHES[switches]), GlobalConfig(), trained=True), name)

    def run(self, x):
        coarse = getattr(self.extras, name.rstrip("_") + "_branch", None)
        return branch(self.attn, x.unflatten(1, GRID), spec, Engine(dense_attention), coarse)

    assert_gradients(Layer(run), tokens())


@pytest.mark.parametrize("tokens_at_a_time", [None, 70])
@pytest.mark.parametrize("grid", [GRID, TokenGrid(1, 3, 5)])  # the second is smaller than the kernels and windows
def test_layer(grid, tokens_at_a_time):
    spec = block_spec(1, LocalConfig(), GlobalConfig(), trained=True)
    engine = Engine(dense_attention, tokens_at_a_time=tokens_at_a_time)
    t = torch.tensor([900.0, 20.0])

    def run(self, x):
        return ultragen_attention(self.attn, x, grid, spec, self.extras, self.gates_at(t), engine)

    assert_gradients(Layer(run), tokens(2, grid))


@pytest.mark.parametrize("tokens_at_a_time", [None, 70])
@pytest.mark.parametrize("windows", [(1, 3, 1), (2, 1, 1), (2, 3, 11)])
def test_t3_layer(windows, tokens_at_a_time):
    grid, engine = TokenGrid(4, 6, 11), Engine(dense_attention, tokens_at_a_time=tokens_at_a_time)
    assert_gradients(Layer(lambda self, x: t3_attention(self.attn, x, grid, windows, engine)), tokens(1, grid))


@pytest.mark.parametrize("tokens_at_a_time", [None, 70])
def test_dense_layer_with_bounded_memory(tokens_at_a_time):
    table, engine = rope_table(GRID, C, torch.device("cpu")), Engine(dense_attention, tokens_at_a_time=tokens_at_a_time)
    layer = Layer(lambda self, x: layers.dense_attention_(self.attn, 1 * x, table, engine))
    assert_gradients(layer, tokens())


def test_a_frozen_input_leaves_the_weights_their_gradients(interpreted_kernels):
    """As in the first hierarchical layer when the base model is frozen: the kernels would take the gradients away."""
    spec = block_spec(1, LocalConfig(), GlobalConfig(), trained=True)

    def run(self, x):
        gates = self.gates_at(torch.tensor([500.0]))
        return ultragen_attention(self.attn, x, GRID, spec, self.extras, gates, Engine(dense_attention))

    layer = Layer(run).float()
    layer.attn.requires_grad_(False)
    layer(tokens().float()).square().sum().backward()
    learning = [*layer.extras.named_parameters(), *layer.gates.named_parameters()]
    assert [name for name, parameter in learning if not parameter.grad.any()] == []


def test_training_after_sampling_on_the_same_grid():
    """Tables that inference mode made would refuse to be part of a backward pass."""
    spec = block_spec(1, LocalConfig(), GlobalConfig(), trained=True)
    gates = Gates(*(torch.full((1, 1, 1), 0.5, dtype=torch.float64) for _ in range(2)))
    grid = TokenGrid(3, 7, 13)  # of no other test: the tables are cached

    def run(self, x):
        return ultragen_attention(self.attn, x, grid, spec, self.extras, gates, Engine(dense_attention))

    layer, x = Layer(run), tokens(1, grid)
    with torch.inference_mode():
        sampled = layer(x)
    trained = layer(x)
    trained.sum().backward()
    torch.testing.assert_close(sampled, trained)
