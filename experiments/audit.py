"""Inversion attacks on the smashed data of a model at several cuts (docs/audit.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leansplit.costs.privacy import epsilon_spent
from leansplit.errors import UserError, require_positive
from leansplit.inversion import (
    DecoderConfig,
    Observer,
    PixelRange,
    SearchConfig,
    Similarity,
    chosen_smoothness,
    nearest,
    search_inputs,
    similarity,
    train_decoder,
)
from leansplit.micro_batches import run_in_parts
from leansplit.models import MODELS
from leansplit.noise import derive_seed, numpy_generator
from leansplit.server_app.config import RunConfig, run_config
from leansplit.tasks.task import Task

_TUNED_ON = 4  # public images that the search is tuned on
ORIGINALS, MEAN, NEAREST = "original", "mean training image", "nearest public image"


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is attacked, and how hard."""

    cuts: tuple[str, ...]
    """Last client-side layers."""
    noises: tuple[float, ...] = (0.0,)
    """sigmas; 0 = smashed data as they are, neither clipped nor noised."""
    clip: float = 0.0
    """C, where there is noise; 0 = the median norm of public smashed data at the cut."""
    samples: int = 8
    """Training images that are attacked."""
    public: int = 2000
    """Most held-out images that the attacker has."""
    uploads: int = 1
    """Times that one image is uploaded, for epsilon."""
    delta: float = 1e-5
    search: SearchConfig = SearchConfig()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self) -> None:
        """Refuse what cannot be attacked."""
        for name in ("samples", "uploads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.public < _TUNED_ON:
            raise UserError(f"public must be at least {_TUNED_ON}, got {self.public}")
        if not self.noises or not all(math.isfinite(s) and s >= 0 for s in self.noises):
            raise UserError(f"noise takes finite numbers from 0, got {list(self.noises)}")
        if self.clip:
            require_positive("clip", self.clip)
        if not 0 < self.delta < 1:
            raise UserError(f"delta must be above 0 and below 1, got {self.delta}")
        if any(self.noises):
            epsilon_spent([], self.delta)  # says if the library is missing


@dataclass(frozen=True)
class Finding:
    """One cut under one noise."""

    cut: str
    elements: int
    """Values of one image's smashed data."""
    noise: float
    clip: float
    epsilon: float
    """Of one image in all its uploads; infinite without noise."""
    accuracy: float
    """Of the model on the public images, their smashed data noised alike."""
    smoothness: float
    """Weight of total variation that the search was tuned to."""
    search: Similarity
    decoder: Similarity


@dataclass(frozen=True)
class Audit:
    """What the attacks came to."""

    config: AuditConfig
    seed: int
    weights: str
    """Where the model's weights come from."""
    num_public: int
    findings: tuple[Finding, ...]
    baselines: Mapping[str, Similarity]
    """What is had without any smashed data."""
    pictures: tuple[tuple[str, Tensor], ...]
    """(what, images [n, C, H, W] in [0, 1]), from top to bottom."""


def problems(config: AuditConfig, settings: Mapping[str, Any]) -> list[RunConfig]:
    """Return a run's configuration for each cut, so that every mistake shows before the work.

    Raises:
        UserError: also for models of texts.
    """
    runs = [run_config("ho-sfl", {**settings, "cut_layer": cut}) for cut in config.cuts]
    if not runs:
        raise UserError("name a cut with --cut")
    if MODELS[runs[0].model].takes != "images":
        raise UserError(
            f"audit rebuilds images, and {runs[0].model!r} takes texts: no attack is built for "
            "them (docs/audit.md says what to assume); choose an image task"
        )
    return runs


def audit(
    config: AuditConfig, settings: Mapping[str, Any], say: Callable[[str], None] = lambda _: None
) -> Audit:
    """Attack a model at every cut, under every noise.

    Args:
        config: what is attacked.
        settings: keys of task and model, without the cut.
        say: told what is being done.

    Raises:
        UserError: if the problem cannot be built, before any work on it.
    """
    runs = problems(config, settings)
    task = runs[0].workload().load_task()
    if config.samples > len(task.train):
        raise UserError(f"samples must be at most {len(task.train)}, got {config.samples}")
    models = [run.workload().build_model(task) for run in runs]
    seed = runs[0].seed
    pixels = PixelRange.of(task.test.inputs)
    public = pixels.images(task.test.inputs[: config.public])
    order = numpy_generator(derive_seed(seed, "audit-samples")).permutation(len(task.train))
    private = pixels.images(task.train.select(order[: config.samples]).inputs)
    average = pixels.images(task.train.inputs).mean(0, keepdim=True).expand_as(private)
    baselines = {MEAN: average, NEAREST: nearest(private, public)}
    pictures: list[tuple[str, Tensor]] = [(ORIGINALS, private)]
    findings = []
    for run, model in zip(runs, models, strict=True):
        client = model.client_model.eval().requires_grad_(False)
        plain = Observer(client, pixels)
        smashed = plain.smashed_data(public)
        norms = smashed.flatten(1).norm(dim=1)
        clip = config.clip or float(norms.median())
        for noise in config.noises:
            say(f"cut {run.cut_layer}, noise {noise:g}")
            observer = plain.with_noise(noise, clip)
            attacked = _attacked(observer, private, public, config, seed)
            observed = observer.noised(smashed, derive_seed(seed, "audit-noise", local_step=1))
            releases = [(noise, config.uploads)]
            findings.append(
                Finding(
                    cut=run.cut_layer,
                    elements=smashed[0].numel(),
                    noise=noise,
                    clip=observer.clip,
                    epsilon=epsilon_spent(releases, config.delta) if noise else math.inf,
                    accuracy=_accuracy(model.server_model, observed, task),
                    smoothness=attacked.smoothness,
                    search=similarity(attacked.searched, private),
                    decoder=similarity(attacked.decoded, private),
                )
            )
            where = f"{run.cut_layer}, σ = {noise:g}"
            pictures.append((f"{where}\nsearch", attacked.searched))
            pictures.append((f"{where}\ndecoder", attacked.decoded))
    return Audit(
        config=config,
        seed=seed,
        weights=runs[0].initial_weights or f"initial, drawn from seed {seed}",
        num_public=len(public),
        findings=tuple(findings),
        baselines={what: similarity(images, private) for what, images in baselines.items()},
        pictures=(*pictures, *baselines.items()),
    )


@dataclass(frozen=True)
class _Attacked:
    searched: Tensor
    decoded: Tensor
    smoothness: float


def _attacked(
    observer: Observer, private: Tensor, public: Tensor, config: AuditConfig, seed: int
) -> _Attacked:
    """Return what both attacks make of the smashed data of ``private``."""
    observed = observer.observe(private, derive_seed(seed, "audit-noise", local_step=0))
    start = public.mean(0, keepdim=True)
    known = public[:_TUNED_ON]
    seen = observer.observe(known, derive_seed(seed, "audit-noise", local_step=1))
    scale = float(seen.flatten(1).square().sum(1).mean()) or 1.0
    weight = chosen_smoothness(observer, known, seen, start, scale, config.search)
    decoder = train_decoder(observer, public, seed, config.decoder)
    return _Attacked(
        search_inputs(observer, observed, start, scale, weight, config.search),
        decoder(observed),
        weight,
    )


def _accuracy(server_model: torch.nn.Module, smashed: Tensor, task: Task) -> float:
    labels = task.test.labels[: len(smashed)]
    with torch.no_grad():
        outputs = run_in_parts(server_model.eval(), smashed, 250)
    return task.metric(outputs, labels)


def audit_values(audit: Audit) -> dict[str, Any]:
    """Return the content of ``audit.json``, pictures left out."""
    return {
        "config": dataclasses.asdict(audit.config),
        "seed": audit.seed,
        "weights": audit.weights,
        "num_public": audit.num_public,
        "findings": [dataclasses.asdict(finding) for finding in audit.findings],
        "baselines": {k: dataclasses.asdict(v) for k, v in audit.baselines.items()},
    }
