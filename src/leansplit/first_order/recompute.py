"""Exact gradients near the memory of inference: recomputation instead of a kept graph.

This is the honest rival of every zeroth-order claim about memory: a client that can run a forward
pass can have the exact gradient as well, for some more forward passes.

The client model is a chain f = f_L o ... o f_1 of modules (:func:`leansplit.models.chain`), with
a_0 = x, a_l = f_l(a_(l-1)), z = a_L. Forward, no graph is kept. When lambda = dl/dz arrives, from
l = L down to 1 with g_L = lambda:

    theta_l.grad += (df_l/dtheta_l)^T g_l        g_(l-1) = (df_l/da)^T g_l      at a_(l-1)

where only the graph of one f_l exists at a time. Its input a_(l-1) is recomputed by bisection:
from the chain's input run the first half without a graph, keep the value in the middle,
back-propagate through the second half, drop the middle, do the same to the first half (Griewank,
"Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
differentiation", 1992).

With micro-batches all of this is done for b samples at a time. lambda is the gradient of the
batch's *mean* loss, it carries the 1/B already, so the gradients of micro-batches add up.

Costs, in passes over a chain of L equal links (:func:`replayed_forwards` is exact):

    kept graph       1 forward                        1 backward   memory: all activations of B
    recomputation    1 + 1 + log2(L)/2 forwards       1 backward   memory: log2(L) activations and
                                                                   the graph of one link, of b

beside parameters, their gradients, x, z and lambda. The first forward makes z, the last runs each
link with its graph, the others are replays. One batch gives the same bits as a kept graph; several
micro-batches differ by the order in which float32 gradients are added.

Random layers: each link is replayed from the generators' states in the first pass, so dropout drops
the same elements. Masks of a batch cannot be split, so ``micro_batch`` is refused with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leansplit.errors import UserError
from leansplit.micro_batches import run_in_parts
from leansplit.noise.torch_rng import generator_states, restore_generators, torch_seeded


def recompute_forward(
    links: Sequence[nn.Module], inputs: Tensor, *, dropout_seed: int, micro_batch: int = 0
) -> Tensor:
    """Run the chain in training mode without a graph; returns z [B, ...].

    Args:
        links: the chain.
        inputs: x [B, ...].
        dropout_seed: seed for random layers.
        micro_batch: samples run at once; 0 = all.

    Raises:
        UserError: if random numbers are drawn for a part of the batch.
    """
    _train(links)
    with torch_seeded(dropout_seed):
        seeded = generator_states()

        def run(part: Tensor) -> Tensor:
            outputs = _run(links, part)
            if len(part) < len(inputs):
                _require_no_draws(seeded)
            return outputs

        return run_in_parts(run, inputs, micro_batch)


def recompute_step(
    optimizer: torch.optim.Optimizer | None,
    links: Sequence[nn.Module],
    inputs: Tensor,
    smashed_gradient: Tensor,
    *,
    dropout_seed: int,
    micro_batch: int = 0,
) -> None:
    """Back-propagate lambda through the recomputed chain, then take one optimizer step.

    Args:
        optimizer: over the chain's parameters; None = there is nothing to train.
        links: the chain.
        inputs: x [B, ...].
        smashed_gradient: lambda, the shape of z.
        dropout_seed: the seed of the forward pass that made z.
        micro_batch: samples recomputed at once; 0 = all.
    """
    if optimizer is None:
        return
    optimizer.zero_grad(set_to_none=True)
    recompute_gradients(
        links, inputs, smashed_gradient, dropout_seed=dropout_seed, micro_batch=micro_batch
    )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # a device holds gradients during the step only


def recompute_gradients(
    links: Sequence[nn.Module],
    inputs: Tensor,
    smashed_gradient: Tensor,
    *,
    dropout_seed: int,
    micro_batch: int = 0,
) -> None:
    """Add d<lambda, f(x)>/dtheta to the ``grad`` of the chain's parameters."""
    _train(links)
    first_trained = next((i for i, link in enumerate(links) if _is_trained(link)), len(links))
    size = micro_batch or len(inputs)
    for first in range(0, len(inputs), size):
        part = slice(first, first + size)
        with torch_seeded(dropout_seed):
            start = _run(links[:first_trained], inputs[part])
            _backward(links[first_trained:], start, [smashed_gradient[part]], is_first=True)


def replayed_forwards(num_links: int) -> float:
    """Return the passes over a chain that bisection repeats, beside that with the graph."""

    def replays(length: int) -> int:
        half = length // 2
        return half + replays(half) + replays(length - half) if half else 0

    return replays(num_links) / num_links if num_links else 0.0


def _backward(
    links: Sequence[nn.Module], value: Tensor, gradients: list[Tensor], *, is_first: bool = False
) -> None:
    """Back-propagate through links that start from ``value``.

    The one tensor in ``gradients``, that at the chain's end, is replaced by that at ``value``: no
    frame of the recursion holds on to a gradient that was used. With ``is_first`` nobody needs it.
    The generators must be in the states in which the forward pass entered the first link.
    """
    while len(links) > 1:
        half = len(links) // 2
        entered = generator_states()
        _backward(links[half:], _run(links[:half], value), gradients)
        restore_generators(entered)
        links = links[:half]
    for link in links:
        leaf = value.detach().requires_grad_(not is_first)
        with torch.enable_grad():
            output = link(leaf)
        torch.autograd.backward([output], [gradients.pop()])
        if leaf.grad is not None:
            gradients.append(leaf.grad)


def _run(links: Sequence[nn.Module], value: Tensor) -> Tensor:
    with torch.no_grad():
        for link in links:
            value = link(value)
    return value


def _train(links: Sequence[nn.Module]) -> None:
    for link in links:
        link.train()


def _is_trained(link: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in link.parameters())


def _require_no_draws(states: Sequence[Tensor]) -> None:
    if not all(map(torch.equal, states, generator_states())):
        raise UserError(
            "a layer of the client model draws random numbers (dropout), which cannot be split "
            "into micro-batches; set micro_batch to 0"
        )
