"""What clients are asked for: a record of one type and form. Any other answer drops its client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from leansplit.wire import (
    BehindReply,
    DecodeError,
    Form,
    Record,
    decode_as,
    most_tensors,
    require_form,
)

R = TypeVar("R", bound=Record)

Read = Callable[[int, bytes], R]
"""(client id, its answer) -> the record, or ``DecodeError`` if that is not what was asked for."""


@dataclass(frozen=True)
class Wanted(Generic[R]):
    """The answer that every client of an exchange owes.

    Attributes:
        record_type: the class of the record.
        form: client id -> what its tensors must be, and those header fields that the server knows.
    """

    record_type: type[R]
    form: Callable[[int], Form]

    def read(self, client_id: int, blob: bytes) -> R:
        """Decode an answer.

        Raises:
            DecodeError: if it is not the record that was asked for.
        """
        form = self.form(client_id)
        return self._settled(form, decode_as(blob, self.record_type, most_tensors(form)))

    def read_or_behind(self, client_id: int, blob: bytes) -> R | BehindReply:
        """Decode an answer, or the client's word that its replica is behind.

        Raises:
            DecodeError: if it is neither.
        """
        form = self.form(client_id)
        record = decode_as(blob, (self.record_type, BehindReply), most_tensors(form))
        if isinstance(record, BehindReply):
            return record
        assert isinstance(record, self.record_type)
        return self._settled(form, record)

    def _settled(self, form: Form, record: R) -> R:
        if type(record) is not self.record_type:  # a subclass has fields that nobody asked for
            what = f"{type(record).__name__} where {self.record_type.__name__} was expected"
            raise DecodeError(f"got {what}", "record")
        require_form(record, form)
        return record
