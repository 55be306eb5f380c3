"""What a message's action is answered by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from leansplit.clients.deferred import Deferred
from leansplit.clients.session import Session
from leansplit.errors import UserError
from leansplit.wire import Record

Handler = Callable[[Session, Any], Record | Deferred]
"""(one client's view of the message, the request) -> the reply, or what it is computed from."""

HandlerTable = Mapping[str, tuple[type[Record], Handler]]
"""Action -> the record it takes and the function that answers it."""

_handlers: dict[str, tuple[type[Record], Handler]] = {}


def register_handlers(table: HandlerTable) -> None:
    """Make actions known to every ClientApp that is made from now on.

    Raises:
        UserError: if an action is taken by another function.
    """
    for action, (request_type, handler) in table.items():
        known = _handlers.get(action)
        if known is not None and known[1] is not handler:
            raise UserError(f"the action {action!r} is taken; choose another name")
        _handlers[action] = (request_type, handler)


def registered_handlers() -> HandlerTable:
    """Return all actions known so far."""
    return dict(_handlers)
