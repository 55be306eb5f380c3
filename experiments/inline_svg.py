"""A matplotlib figure as an SVG element that stands in a page and takes on the page's colours.

Ink, paper and grid become CSS variables, so that one drawing serves light and dark pages; names
within the drawing get a prefix, so that several drawings stand in one page. Letters are outlines:
the picture needs no font and looks the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from matplotlib.figure import Figure

from leansplit.experiments.figure_style import BAR_COLOR, GRID_COLOR, PAPER, TITLE_COLOR, render

THEME: Mapping[str, str] = {
    "#000000": "var(--ink)",
    TITLE_COLOR.lower(): "var(--muted)",
    BAR_COLOR.lower(): "var(--muted)",
    GRID_COLOR.lower(): "var(--grid)",
}
"""Colour in the figure -> colour in the page. Black that is not written is `fill` of the element,
which the page sets to ink."""
LINE_THEME: Mapping[str, str] = {**THEME, PAPER.lower(): "var(--paper)"}
"""The same for figures where white is the paper that shows through markers."""

_DROPPED = ("metadata", "style")


def inline_svg(
    figure: Figure, *, name: str, description: str, theme: Mapping[str, str] = THEME
) -> str:
    """Return ``figure`` as one `svg` element without anything that points outside the page.

    Args:
        figure: drawn as it stands, but without its white background.
        name: prefix of the names within the drawing; letters, digits and hyphens.
        description: what a reader is told who cannot see it.
        theme: colours that follow the page; matplotlib writes them in lower case.
    """
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    root = ElementTree.fromstring(render(figure, "svg"))  # comments are not read
    for element in root.iter():
        for child in [child for child in element if _local(child.tag) in _DROPPED]:
            element.remove(child)
        element.tag = _local(element.tag)
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            element.set(_local(key), _rewritten(_local(key), value, name, theme))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    title = ElementTree.Element("title", {"id": f"{name}-title"})
    title.text = description
    root.insert(0, title)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rewritten(key: str, value: str, name: str, theme: Mapping[str, str]) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    if key in ("style", "fill", "stroke"):
        return re.sub(r"#[0-9a-f]{6}\b", lambda found: theme.get(found[0], found[0]), value)
    return value
