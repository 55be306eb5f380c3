"""What samples look like where they cross the cut: as clients report it, and as the server knows.

A report is a client's own word. Whatever the server knows by itself is held against it before
anything is computed with the client's answers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from leansplit.models import SplitModel
from leansplit.sequences import are_tokens
from leansplit.wire import ANY, DecodeError, SetupReply, TensorForm

MOST_SAMPLES: Final = 10_000_000
"""Of one client, where the server has no better bound: it keeps a few bytes for each."""

NO_SAMPLES: Final = TensorForm(())
"""The form of what a client leaves out of its report."""


@dataclass(frozen=True)
class Sample:
    """What one sample of a client looks like where it crosses the cut.

    Attributes:
        smashed_data: form of its z, [...]; means nothing without a cut.
        labels: form of its y, [...]; means nothing without a cut.
    """

    smashed_data: TensorForm
    labels: TensorForm

    def stacked(self, *leading: int) -> dict[str, TensorForm]:
        """Return the forms of an upload of so many samples: ``leading`` dimensions come first."""
        return {
            "smashed_data": self.smashed_data.stacked(*leading),
            "labels": self.labels.stacked(*leading),
        }


@dataclass(frozen=True, kw_only=True)
class ExpectedSamples:
    """What the server knows of its clients' samples before it hears of any.

    What is None, or 0 for a bound, it does not know; clients must then agree with one another as
    far as the method needs that.

    Attributes:
        num_classes: C; 0: labels are no classes.
        smashed_data: form of one sample's z [...].
        labels: form of one sample's y [...].
        label_bound: labels are indices below this.
        longest: positions of a sequence at most.
        most_samples: of one client.
    """

    num_classes: int | None = None
    smashed_data: TensorForm | None = None
    labels: TensorForm | None = None
    label_bound: int = 0
    longest: int = 0
    most_samples: int = MOST_SAMPLES

    @classmethod
    def of_model(cls, model: SplitModel, *, is_whole_model: bool) -> ExpectedSamples:
        """Return what follows from the model alone."""
        absent = NO_SAMPLES if is_whole_model else None
        return cls(
            smashed_data=absent,
            labels=absent,
            label_bound=int(getattr(model.server_model, "label_bound", 0)),
            longest=int(getattr(model.client_model, "max_positions", 0)),
        )

    def like(self, client_model: nn.Module, inputs: Tensor, labels: Tensor) -> ExpectedSamples:
        """Return what is known with a batch of samples like the clients', too.

        The batch is run forward once, by a model in evaluation mode.
        """
        if self.smashed_data is not None:
            return self
        was_training = client_model.training
        with torch.inference_mode():  # sequences need no whole batch, as some other layers do
            smashed = client_model.eval()(inputs[:1] if are_tokens(inputs) else inputs)
        client_model.train(was_training)
        shape, label_shape = tuple(smashed.shape[1:]), tuple(labels.shape[1:])
        longest = self.longest
        if are_tokens(inputs):
            shape, label_shape = (ANY, *shape[1:]), (ANY,) * len(label_shape)
            longest = longest or inputs.shape[-1]
        return dataclasses.replace(
            self,
            smashed_data=TensorForm(shape, smashed.dtype),
            labels=TensorForm(label_shape, labels.dtype),
            longest=longest,
        )

    def sample(self, report: SetupReply, *, has_mask: bool) -> Sample:
        """Read off a client's report what its samples look like.

        Args:
            report: of the client.
            has_mask: whether samples are sequences, whose length may be any.

        Raises:
            DecodeError: if what should hold no sample is another tensor, or of samples that are
                not those of this run.
        """
        forms = {}
        for name, wanted in (("smashed_data", self.smashed_data), ("labels", self.labels)):
            tensor: Tensor = getattr(report, name)
            if not tensor.ndim or len(tensor):
                raise DecodeError(
                    f"SetupReply.{name} is {TensorForm.of(tensor)}, not of no samples", "shape"
                )
            shape = tuple(tensor.shape[1:])
            if has_mask and wanted != NO_SAMPLES:
                ranks = (2,) if name == "smashed_data" else (0, 1)
                if len(shape) not in ranks:
                    raise DecodeError(
                        f"SetupReply.{name} is {TensorForm.of(tensor)}, not of sequences", "shape"
                    )
                shape = (ANY, *shape[1:]) if shape else shape
            form = TensorForm(shape, tensor.dtype, longest=self.longest)
            if wanted is not None and (form.shape, form.dtype) != (wanted.shape, wanted.dtype):
                raise DecodeError(
                    f"SetupReply.{name} is of samples {TensorForm(shape, tensor.dtype)}, those of "
                    f"this run are {wanted}; give all clients the same input shape",
                    "shape",
                )
            forms[name] = form
        bound = self.num_classes or self.label_bound or len(report.label_counts)
        forms["labels"] = dataclasses.replace(
            forms["labels"],
            num_classes=bound,
            may_be_ignored=has_mask and bool(forms["labels"].shape),
        )
        return Sample(**forms)

    def require_counts(self, report: SetupReply, num_labels: int | None) -> None:
        """Refuse a report whose counts contradict each other, or what is known.

        Args:
            report: of a client.
            num_labels: labels that others count, if anybody has; held against the report where
                the number of classes is not known.

        Raises:
            DecodeError: saying what is wrong.
        """
        counts, held = report.label_counts, report.num_samples
        if held > self.most_samples:
            raise DecodeError(
                f"num_samples is {held}, and at most {self.most_samples} are possible", "value"
            )
        wanted = num_labels if self.num_classes is None else self.num_classes
        if wanted is not None and len(counts) != wanted:
            raise DecodeError(f"it counts {len(counts)} labels, and there are {wanted}", "value")
        if counts and (min(counts) < 0 or sum(counts) != held):
            raise DecodeError(f"label_counts do not add up to num_samples, {held}", "value")
