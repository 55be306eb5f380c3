"""A model as a chain of modules, each fed with nothing but the output of the one before."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class FallsApart(Protocol):
    """A module with a forward of its own that knows how it is put together."""

    def segments(self) -> list[nn.Module]:
        """Return modules whose composition this is; the module itself if it stays whole."""
        ...


def chain(model: nn.Module) -> list[nn.Module]:
    """Return modules whose composition is ``model``, as many as can be told apart.

    The halves that ``split_at`` makes are cut wherever a single value is alive, those of a language
    model between its blocks; an ``nn.Sequential``, nested ones included, falls into its children. A
    residual block, or any other module with a forward of its own, stays whole. A layer that
    overwrites its input (``nn.ReLU(inplace=True)``) stays with the one before. The modules are
    those of ``model``, so parameters are shared; call ``train`` or ``eval`` on each of them.
    """
    links: list[nn.Module] = []
    for module in _flatten(model):
        if links and getattr(module, "inplace", False):
            links[-1] = nn.Sequential(links[-1], module)
        else:
            links.append(module)
    return links


def _flatten(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, FallsApart):
        parts = model.segments()
    elif isinstance(model, nn.Sequential) and _is_plain(model):
        parts = [*model]  # not children(), which name a repeated layer once
    else:
        return [model]
    if not parts or parts == [model]:
        return [model]
    return [link for part in parts for link in _flatten(part)]


def _is_plain(model: nn.Sequential) -> bool:
    """Say whether calling the children in turn is all that calling ``model`` does."""
    is_hooked = model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model)
    return type(model).forward is nn.Sequential.forward and not is_hooked
