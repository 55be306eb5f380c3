"""Passes of several parameter vectors by ``torch.func.vmap``, beside one pass after the other.

    python -m leansplit.experiments.benchmarks.vectorised

Directions: clients that hold the same parameters probe P directions; their batches are joined on
either side, as leansplit joins them. Clients: each runs a batch of its own at parameters of its
own. Gradients: the same, differentiated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.func import functional_call, grad, vmap

from leansplit.experiments.benchmarks.engine import CASES
from leansplit.experiments.benchmarks.turns import interleaved_ratios, spread
from leansplit.models import build_model, split_at
from leansplit.noise import numpy_generator
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.planning import Problem

_MINILM = {"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384}
_MINILM |= {"num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522}
_SCALE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A client's layers and batch; weights are drawn, which changes no time."""

    model: str
    cut: str
    problem: Problem
    batch_size: int
    options: Mapping[str, Any] = field(default_factory=dict)


_CIFAR10 = CASES["cifar10"]
SETTINGS: Mapping[str, Setting] = {
    "digits": Setting(
        model="digits-cnn",
        cut="pool1",
        problem=Problem(input_shape=(1, 8, 8), num_classes=10),
        batch_size=8,
    ),
    "cifar10": Setting(
        model="cifar-cnn",
        cut=_CIFAR10["cut_layer"],
        problem=Problem(input_shape=(3, 32, 32), num_classes=10),
        batch_size=16,
        options={
            name.removeprefix("model_options."): value
            for name, value in _CIFAR10.items()
            if name.startswith("model_options.")
        },
    ),
    "minilm": Setting(
        model="language",
        cut="5",
        problem=Problem.of_texts(32, "classes", 2),
        batch_size=8,
        options={"source": json.dumps(_MINILM)},
    ),
}

Passes = tuple[Callable[[], Tensor], Callable[[], Tensor]]
"""Of all parameter vectors: (one after the other, vectorised); outputs have them as first axis."""


class Vectors:
    """Passes of a client's layers at several parameter vectors.

    Args:
        setting: the layers and the batch.
        clients: how many batches there are.
        directions: how many vectors the directions make.
    """

    def __init__(self, setting: Setting, clients: int, directions: int) -> None:
        model = build_model(
            setting.model,
            input_shape=setting.problem.input_shape,
            num_classes=setting.problem.num_classes,
            seed=0,
            options={**setting.problem.model_options, **setting.options},
        )
        self._model = split_at(model, setting.cut).client_model.eval()
        own = trainable_parameters(self._model)
        self._spec = ParameterSpec.of(own)
        self._theta = self._spec.flatten(own)
        self._batch = setting.problem.batch(setting.batch_size)[0]
        self._clients, self._directions = clients, directions

    def kinds(self) -> dict[str, Passes]:
        """Return what is compared."""
        joined = torch.cat([self._batch] * self._clients)
        each = torch.stack([self._batch] * self._clients)
        shared, own = self._around_theta(self._directions), self._around_theta(self._clients)
        gradient = grad(lambda at, x: self._forward(at, x).square().mean())

        def without_graph(passes: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return torch.inference_mode()(passes)

        return {
            "directions": (
                without_graph(lambda: torch.stack([self._forward(at, joined) for at in shared])),
                without_graph(lambda: vmap(self._forward, in_dims=(0, None))(shared, joined)),
            ),
            "clients": (
                without_graph(lambda: torch.stack([*map(self._forward, own, each)])),
                without_graph(lambda: vmap(self._forward)(own, each)),
            ),
            "gradients": (
                lambda: torch.stack([*map(gradient, own, each)]),
                lambda: vmap(gradient)(own, each),
            ),
        }

    def _around_theta(self, vectors: int) -> Tensor:
        moves = numpy_generator(0).standard_normal((vectors, len(self._theta)), "float32")
        return self._theta + _SCALE * torch.from_numpy(moves)

    def _forward(self, at: Tensor, inputs: Tensor) -> Tensor:
        smashed: Tensor = functional_call(self._model, self._spec.views(at), (inputs,))
        return smashed


def report(name: str, passes: Passes, repeats: int) -> str:
    """Return a line: how much faster the vectorised passes are, and whether they are equal."""
    one_by_one, vectorised = passes
    try:
        expected, found = one_by_one(), vectorised()
    except RuntimeError as error:
        return f"  {name}: vmap does not run this: {str(error).splitlines()[0]}"
    times = interleaved_ratios(vectorised, {name: one_by_one}, repeats + 1)[name]
    apart = float((found - expected).abs().max() / expected.abs().max())
    same = "equal bits" if torch.equal(found, expected) else f"apart by {apart:.0e} of the largest"
    return f"  {name}: {spread(times)}; {same}"


def main(
    only: Annotated[list[str] | None, typer.Option(help="Settings; default: all.")] = None,
    clients: Annotated[int, typer.Option(help="Clients of a step.")] = 20,
    directions: Annotated[int, typer.Option(help="P.")] = 5,
    repeats: Annotated[int, typer.Option(help="Turns of the interleaved run.")] = 9,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
) -> None:
    """Print time one after the other / time vectorised: above 1, ``vmap`` wins."""
    torch.set_num_threads(threads)
    versions, _, hardware = collect_environment()
    typer.echo(f"{hardware['cpu_model']}, {threads} threads, torch {versions['torch']}")
    typer.echo(f"{clients} clients, {directions} directions: one after the other / vectorised")
    for name, setting in SETTINGS.items():
        if only and name not in only:
            continue
        typer.echo(f"{name}, cut {setting.cut}, batches of {setting.batch_size}")
        for kind, passes in Vectors(setting, clients, directions).kinds().items():
            typer.echo(report(kind, passes, repeats))


if __name__ == "__main__":
    typer.run(main)
