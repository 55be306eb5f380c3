"""The picture of who holds which data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leansplit.errors import UserError
from leansplit.experiments.figure_style import (
    BAR_COLOR,
    COLUMN_INCHES,
    PAGE_INCHES,
    RC,
    TITLE_COLOR,
    new_figure,
    render,
)
from leansplit.server_app.results import write_files

Floats = npt.NDArray[np.float64]


def plot_partition(partition: Mapping[str, Any], out_path: Path) -> Path:
    """Write a picture of who holds which labels, as .png, .svg or .pdf by the suffix.

    Args:
        partition: with ``label_counts``, one entry per client: counts by label, as a list or as a
            mapping from label to count. Optional ``label_names``.
        out_path: the file; its folder is created if needed.

    Raises:
        UserError: for another suffix, missing or ragged counts, or an unwritable folder.
    """
    suffix = out_path.suffix.removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise UserError(f"cannot draw {out_path.name}: use a name ending in .png, .svg or .pdf")
    write_files(out_path.parent, {out_path.name: render(partition_figure(partition), suffix)})
    return out_path


def partition_figure(partition: Mapping[str, Any]) -> Figure:
    """Return a matrix shaded by each client's share of labels, with its samples above.

    Shares rather than counts: one large client would leave all others pale. Counts are written
    into the cells as long as they can be read.

    Raises:
        UserError: if ``label_counts`` is missing, empty or ragged.
    """
    counts, names = label_matrix(partition)
    num_labels, num_clients = counts.shape
    with mpl.rc_context(RC):
        width = COLUMN_INCHES if num_clients <= 30 else PAGE_INCHES
        height = 1.5 + min(2.6, 0.16 * max(num_labels, 4))
        figure = new_figure(width, height)
        bars, matrix = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.2])
        sizes = counts.sum(axis=0)
        if num_clients <= 100:
            bars.bar(np.arange(num_clients), sizes, color=BAR_COLOR)
        else:  # gaps would be thinner than a pixel, and one shape draws faster than hundreds
            bars.stairs(sizes, np.arange(num_clients + 1) - 0.5, fill=True, color=BAR_COLOR)
            bars.set_ylim(bottom=0)
        bars.set_ylabel("Samples")
        bars.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        bars.tick_params(axis="x", length=0)
        bars.set_title(
            f"{num_clients} clients, {num_labels} labels, {sizes.sum():,.0f} samples",
            loc="left",
            color=TITLE_COLOR,
        )
        shares = 100 * counts / np.maximum(sizes, 1)
        image = matrix.imshow(
            shares, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest", origin="lower"
        )
        matrix.set_xlabel("Client id")
        matrix.set_ylabel("Label")
        matrix.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        step = -(-num_labels // 20)
        matrix.set_yticks(range(0, num_labels, step), names[::step])
        matrix.spines[["top", "right"]].set_visible(True)
        color_bar = figure.colorbar(image, ax=matrix, pad=0.02, aspect=12)
        color_bar.set_label("Share of client (%)")
        color_bar.locator = MaxNLocator(4, integer=True)
        color_bar.update_ticks()
        if num_clients <= 10 and num_labels <= 12:
            for (label, client), count in np.ndenumerate(counts):
                color = "white" if shares[label, client] > 0.6 * shares.max() else "#333333"
                matrix.text(
                    client, label, f"{count:.0f}", ha="center", va="center", fontsize=6, color=color
                )
    return figure


def has_labels(partition: Mapping[str, Any]) -> bool:
    """Say whether there is something to draw: texts to continue have no labels."""
    return any(partition.get("label_counts") or [])


def label_matrix(partition: Mapping[str, Any]) -> tuple[Floats, list[str]]:
    """Return (labels x clients) counts and the names of the labels.

    Raises:
        UserError: if ``label_counts`` is missing, empty or ragged.
    """
    clients = list(partition.get("label_counts") or [])
    if clients and all(isinstance(client, Mapping) for client in clients):
        labels = sorted({str(k) for client in clients for k in client}, key=_natural)
        clients = [{str(k): v for k, v in client.items()} for client in clients]
        clients = [[client.get(label, 0) for label in labels] for client in clients]
    else:
        labels = [str(label) for label in range(len(clients[0]) if clients else 0)]
    if not labels or any(len(client) != len(labels) for client in clients):
        raise UserError(
            "cannot draw the partition: label_counts must hold, for every client, a count for "
            "every label"
        )
    names = [str(name) for name in partition.get("label_names") or labels]
    counts = np.asarray(clients, dtype=np.float64).T
    return counts, names if len(names) == len(labels) else labels


def _natural(label: str) -> tuple[bool, int, str]:
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)
