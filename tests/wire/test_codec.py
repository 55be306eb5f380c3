import contextlib
import dataclasses
import json
import tracemalloc

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leansplit.parameters import ParameterSpec
from leansplit.wire import (
    KINDS,
    BehindReply,
    DecodeError,
    ForwardRequest,
    ProbeReply,
    ProbeRequest,
    Record,
    SetupReply,
    SetupRequest,
    SmashedDataReply,
    SyncReply,
    TensorForm,
    WeightsReply,
    codec,
    decode,
    decode_as,
    encode,
    header_limit,
    most_tensors,
    price,
)
from leansplit.wire.records import KIND_KEY, MANY_KEY

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.uint8, torch.uint16, torch.uint32, torch.int8, torch.int32, torch.int64, torch.bool),
)


@st.composite
def tensors(draw):
    """Tensors of any bits (NaN payloads, infinities and signed zeros among them) and strides."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    numel = torch.Size(shape).numel()
    raw = draw(st.binary(min_size=numel * dtype.itemsize, max_size=numel * dtype.itemsize))
    if dtype == torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
HEADER_VALUES = {
    "int": st.integers(-(2**63), 2**63),
    "str": st.text(st.characters(codec="utf-8"), max_size=12),
    "bool": st.booleans(),
    "float": st.floats(allow_nan=False),
    "list[int]": st.lists(st.integers(0, 2**40), max_size=4),
    "dict[str, int]": st.dictionaries(NAMES, st.integers(-(2**63), 2**63), max_size=3),
}


@st.composite
def records(draw):
    """Any record type; fields with a default are sometimes left at it."""
    record_type = draw(st.sampled_from(sorted(Record.types.values(), key=lambda t: t.__name__)))
    values = {}
    for field in dataclasses.fields(record_type):
        is_optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if is_optional and draw(st.booleans()):
            continue
        if KIND_KEY not in field.metadata:
            values[field.name] = draw(HEADER_VALUES[field.type])
        elif field.metadata[MANY_KEY]:
            values[field.name] = draw(st.dictionaries(NAMES, tensors(), max_size=3))
        else:
            values[field.name] = draw(tensors())
    return record_type(**values)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and a.contiguous().view(-1).view(torch.uint8).tolist()
            == b.contiguous().view(-1).view(torch.uint8).tolist()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def payloads(record):
    """Yield (kind, tensor) for every payload tensor of a record."""
    for field in dataclasses.fields(record):
        if KIND_KEY in field.metadata:
            value = getattr(record, field.name)
            for tensor in value.values() if field.metadata[MANY_KEY] else [value]:
                yield field.metadata[KIND_KEY], tensor


@settings(max_examples=300)
@given(records())
def test_round_trip_and_price(record):
    blob = encode(record)
    decoded = decode(blob)
    assert type(decoded) is type(record)
    for field in dataclasses.fields(record):
        assert same(getattr(record, field.name), getattr(decoded, field.name)), field.name
    assert encode(decoded) == blob

    priced = price(blob)
    assert sum(priced.values()) == len(blob)
    expected = dict.fromkeys(priced.keys() - {"envelope"}, 0)
    for kind, tensor in payloads(record):
        if tensor.numel():
            expected[kind] = expected.get(kind, 0) + tensor.numel() * tensor.dtype.itemsize
    assert expected == {kind: size for kind, size in priced.items() if kind != "envelope"}
    assert priced["envelope"] > 0


def test_every_record_type_is_known_and_generated():
    # A new record has header fields that `records` above can draw, and kinds the ledger knows.
    assert {"ForwardRequest", "ProbeReply", "WeightsReply", "SetupReply"} <= Record.types.keys()
    assert "Record" not in Record.types
    for record_type in Record.types.values():
        for field in dataclasses.fields(record_type):
            if KIND_KEY in field.metadata:
                assert field.metadata[KIND_KEY] in KINDS
            else:
                assert field.type in HEADER_VALUES


def test_hand_priced_probe():
    record = ProbeRequest(
        round=3,
        smashed_gradient=torch.zeros(8, 16, 4, 4),
        seeds=torch.tensor([1, 2**32 - 1], dtype=torch.uint32),
    )
    blob = encode(record)
    priced = price(blob)
    assert priced["smashed_gradient"] == 8 * 16 * 4 * 4 * 4
    assert priced["seeds"] == 2 * 4
    assert priced.keys() == {"smashed_gradient", "seeds", "envelope"}
    assert priced["envelope"] == len(blob) - 8192 - 8 < 700
    assert decode_as(blob, ProbeRequest).seeds.tolist() == [1, 2**32 - 1]


def test_an_up_to_date_client_is_sent_no_payload():
    assert price(encode(ForwardRequest(round=1, target_version=0))).keys() == {"envelope"}


def test_several_weights_are_booked_together_and_may_be_views_of_one_vector():
    spec = ParameterSpec(("a/b", "w"), ((2, 2), (3,)))
    vector = torch.arange(7.0)
    blob = encode(WeightsReply(weights=spec.views(vector)))
    assert price(blob)["weights"] == 7 * 4
    weights = decode_as(blob, WeightsReply).weights
    assert list(weights) == ["a/b", "w"]
    assert torch.equal(spec.flatten(weights), vector)


def test_an_encoding_does_not_depend_on_the_order_of_names():
    weights = {"b": torch.ones(2), "a": torch.zeros(1)}
    backwards = dict(reversed(weights.items()))
    blob = encode(WeightsReply(weights=weights))
    assert blob == encode(WeightsReply(weights=backwards))
    assert list(decode_as(blob, WeightsReply).weights) == ["a", "b"]


def test_an_encoding_is_the_same_every_time():
    # safetensors writes several entries of string metadata in random order.
    record = ForwardRequest(round=3, weights={f"layer{i}": torch.ones(1) * i for i in range(8)})
    assert len({encode(record) for _ in range(50)}) == 1
    assert len({tuple(decode_as(encode(record), ForwardRequest).weights) for _ in range(50)}) == 1


def test_decode_as():
    blob = encode(SyncReply(version=3, checksum="ab"))
    assert decode_as(blob, SyncReply) == SyncReply(version=3, checksum="ab")
    assert decode_as(blob, (BehindReply, SyncReply)).version == 3
    assert isinstance(decode_as(blob, Record), SyncReply)
    with pytest.raises(DecodeError, match=r"got SyncReply where .*BehindReply.* was expected"):
        decode_as(blob, BehindReply)
    with pytest.raises(DecodeError, match="got SyncReply"):
        decode_as(blob, (BehindReply, ProbeReply))


# --- bytes that are no record -------------------------------------------------------------------


def refuse(blob):
    with pytest.raises(DecodeError):
        decode(blob)
    priced = price(blob)  # they crossed all the same
    assert sum(priced.values()) == len(blob)
    assert all(size >= 0 for size in priced.values())


BLOB = encode(
    SmashedDataReply(smashed_data=torch.ones(3, 2), labels=torch.arange(3), checksum="0a")
)


@pytest.mark.parametrize("length", range(0, len(BLOB), 7))
def test_truncated(length):
    refuse(BLOB[:length])


def test_too_long():
    refuse(BLOB + b"\0")


@given(st.binary(max_size=300))
def test_random_bytes(blob):
    refuse(blob)


@settings(max_examples=200)
@given(st.integers(0, len(BLOB) - 1), st.integers(1, 255))
def test_one_damaged_byte_is_refused_or_still_a_record(position, flip):
    damaged = bytearray(BLOB)
    damaged[position] ^= flip
    try:
        record = decode(bytes(damaged))
    except DecodeError:
        pass
    else:
        assert isinstance(record, Record)
    assert sum(price(bytes(damaged)).values()) == len(BLOB)


def blob_of(tensors, **metadata):
    return safetensors.torch.save(tensors, metadata or None)


ONE = torch.ones(1)


@pytest.mark.parametrize(
    "blob",
    [
        blob_of({"weight": ONE}),
        blob_of({}, format="pt"),
        blob_of({}, Record="{}"),
        blob_of({}, object="{}"),
        blob_of({}, SyncReply="[1]"),
        blob_of({}, SyncReply='{"version":1,"checksum":""}', BehindReply="{}"),
        blob_of({}, SyncReply="{"),
        blob_of({}, SyncReply="{}"),
        blob_of({}, SyncReply='{"version":1,"checksum":"","extra":0}'),
        blob_of({}, SyncReply='{"version":"1","checksum":""}'),
        blob_of({}, SyncReply='{"version":1.5,"checksum":""}'),
        blob_of({}, SyncReply='{"version":null,"checksum":""}'),
        blob_of({}, SyncReply='{"version":1,"checksum":0}'),
        blob_of({}, BehindReply='{"version":1,"is_worker_gap":1}'),
        blob_of({}, SetupReply='{"num_samples":1,"label_counts":[1,"2"]}'),
        blob_of({"x": ONE}, SyncReply='{"version":1,"checksum":""}'),
        blob_of({}, ProbeReply="{}"),
        blob_of({}, ProbeReply='{"scalars":[1.0]}'),
        blob_of({"scalars": ONE}, ProbeReply='{"scalars":[1.0]}'),
        blob_of({"scalars/0": ONE}, ProbeReply="{}"),
        blob_of({"scalars": ONE, "other": torch.zeros(1)}, ProbeReply="{}"),
        blob_of({"weights": ONE}, WeightsReply="{}"),
        blob_of({}, WeightsReply='{"weights":{}}'),
        blob_of({}, ForwardRequest='{"scalars":null,"round":1}'),
        *(
            blob_of({}, **{record: header})
            for record in ("WeightsReply", "ForwardRequest", "SetupReply")
            for header in ("[]", "null", "5", '"text"', "[" * 100_000)
        ),
        b'\x15\0\0\0\0\0\0\0{"__metadata__":null}',
        b"\2\0\0\0\0\0\0\0[]",
    ],
    ids=lambda blob: f"{len(blob)}-bytes",
)
def test_foreign_blobs(blob):
    refuse(blob)


def record_of_empty_tensors(many, header="{}"):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    entries = {"__metadata__": {"WeightsReply": header}}
    entries |= {f"weights/{i}": entry for i in range(many)}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def peak_of(read, *arguments):
    """Return the bytes of Python memory that a call took at its peak, whatever it raises."""
    tracemalloc.start()
    try:
        with contextlib.suppress(DecodeError):
            read(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_more_tensors_than_were_asked_for_are_not_loaded(monkeypatch):
    """A tensor without elements takes a thousand bytes and some time, once it is there."""
    most = most_tensors({"weights": {"0": TensorForm((0,))}})
    assert len(decode_as(record_of_empty_tensors(most), WeightsReply, most).weights) == most == 10
    loaded = []
    monkeypatch.setattr(codec.safetensors.torch, "load", loaded.append)
    with pytest.raises(DecodeError, match="it has 200 tensors, and at most 10") as refused:
        decode(record_of_empty_tensors(200), most)
    assert refused.value.rejection == "size" and not loaded


def test_kinds_without_many_tensors_never_have_many():
    blob = blob_of({f"scalars{i}": torch.ones(1) for i in range(50)}, ProbeReply="{}")
    for most in (None, 1000):
        with pytest.raises(DecodeError, match="it has 50 tensors, and at most") as refused:
            decode(blob, most)
        assert refused.value.rejection == "size"


@pytest.mark.parametrize("header", ["{}", '{"notes":"' + "x" * 10**7 + '"}'])
def test_a_long_header_is_neither_read_nor_priced(header):
    blob = record_of_empty_tensors(100_000 if header == "{}" else 1, header)
    limit = header_limit(4)
    assert peak_of(decode, blob, 4) < 1e5
    assert peak_of(price, blob, limit) < 1e5
    assert price(blob, limit) == {"envelope": len(blob)}
    with pytest.raises(DecodeError, match="a header of"):
        decode(blob, 4)


@pytest.mark.parametrize(
    "offsets", [[0, 10**12], [0, 1.5], [0.0, 4.0], [0, float("nan")], [False, True], [8, 0]]
)
def test_a_lying_header_cannot_make_bytes_up(offsets):
    length = int.from_bytes(BLOB[:8], "little")
    header = json.loads(BLOB[8 : 8 + length])
    header["smashed_data"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    blob = len(text).to_bytes(8, "little") + text + BLOB[8 + length :]
    refuse(blob)
    assert price(blob) == {"envelope": len(blob)}


@pytest.mark.parametrize("sizes", [[0, 2**40, 2**40], [2**20, 2**20, 0]])
def test_a_shape_without_elements_cannot_be_enormous(sizes):
    """Fuzzing found both: strides that overflow, and a mask for positions without hidden states."""
    length = int.from_bytes(BLOB[:8], "little")
    header = json.loads(BLOB[8 : 8 + length])
    header["smashed_data"] = {"dtype": "F32", "shape": sizes, "data_offsets": [0, 0]}
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = {key: header[key] for key in ("__metadata__", "smashed_data")}
    for more in ({}, {"smashed_data.mask": empty}):
        text = json.dumps(header | more).encode()
        blob = len(text).to_bytes(8, "little") + text
        with pytest.raises(DecodeError):
            decode_as(blob, ProbeReply)


def test_header_values_keep_their_types():
    reply = SetupReply(num_samples=7, label_counts=[3, 0, 4])
    decoded = decode_as(encode(reply), SetupReply)
    assert decoded.num_samples == 7 and decoded.label_counts == [3, 0, 4]
    text = 'naïve "quotes"\n{}'
    assert decode_as(encode(SetupRequest(plan=text)), SetupRequest).plan == text
