"""What `leansplit audit` shows and leaves behind: table, picture, csv and json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from rich import box
from rich.table import Table

from leansplit.experiments.audit import Audit, audit_values
from leansplit.experiments.figure_style import RC, new_figure, render
from leansplit.experiments.privacy_text import epsilon_text
from leansplit.inversion import Similarity
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.results import to_plain, write_files

PICTURE, TABLE, VALUES = "audit.png", "audit.csv", "audit.json"
_MOST_COLUMNS = 12


def audit_table(audit: Audit) -> Table:
    """Return the findings as a table, what is had without smashed data below."""
    table = Table(title="Inversion of smashed data", title_justify="left", box=box.SIMPLE)
    table.add_column("cut")
    alike = "MSE    PSNR  SSIM"
    headers = ("noise", "epsilon", "accuracy", f"search\n{alike}", f"decoder\n{alike}")
    for header in headers:
        table.add_column(header, justify="right", no_wrap="MSE" in header)
    for found in audit.findings:
        table.add_row(
            found.cut,
            f"{found.noise:g}",
            epsilon_text(found.epsilon),
            f"{100 * found.accuracy:.1f} %",
            _cell(found.search),
            _cell(found.decoder),
        )
    table.add_section()
    for what, known in audit.baselines.items():
        table.add_row(what, "", "", "", _cell(known))
    return table


def audit_rows(audit: Audit) -> pd.DataFrame:
    """Return one row for each attack, and one for each baseline."""
    rows: list[dict[str, Any]] = []
    for found in audit.findings:
        where = {
            "cut": found.cut,
            "elements": found.elements,
            "noise": found.noise,
            "clip": found.clip,
            "epsilon": found.epsilon,
            "accuracy": found.accuracy,
        }
        rows.append({"image": "search", **where, **vars(found.search)})
        rows.append({"image": "decoder", **where, **vars(found.decoder)})
    rows += [{"image": what, **vars(alike)} for what, alike in audit.baselines.items()]
    return pd.DataFrame(rows)


def audit_picture(audit: Audit) -> bytes:
    """Return a png: one column for each image attacked, the originals at the top."""
    columns = min(audit.config.samples, _MOST_COLUMNS)
    rows = len(audit.pictures)
    with mpl.rc_context(RC):
        figure = new_figure(1.6 + 0.62 * columns, 0.64 * rows)
        axes = figure.subplots(rows, columns, squeeze=False)
        for line, (what, images) in zip(axes, audit.pictures, strict=True):
            for place, image in zip(line, images, strict=False):
                pixels = image.permute(1, 2, 0).numpy()
                if pixels.shape[2] == 3:
                    place.imshow(pixels, vmin=0, vmax=1)
                else:
                    place.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=1)
                place.set(xticks=[], yticks=[])
                for spine in place.spines.values():
                    spine.set_visible(False)
            line[0].set_ylabel(what, rotation=0, ha="right", va="center")
        return render(figure, "png")


def write_audit(audit: Audit, out_dir: Path, command: list[str]) -> list[Path]:
    """Write picture, csv and json; return their paths."""
    versions, commit, _ = collect_environment()
    about = {"command": command, "versions": versions, "commit": commit}
    text = json.dumps(to_plain(audit_values(audit) | about), indent=1, ensure_ascii=False)
    contents = {
        PICTURE: audit_picture(audit),
        TABLE: audit_rows(audit).to_csv(index=False).encode(),
        VALUES: (text + "\n").encode(),
    }
    write_files(out_dir, contents)
    return [out_dir / name for name in contents]


def _cell(alike: Similarity) -> str:
    return f"{alike.mse:.4f}  {alike.psnr:4.1f}  {alike.ssim:5.2f}"
