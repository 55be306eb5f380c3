"""Every method on tiny language models: equals its plain loop, and its ledger its formula."""

import dataclasses

import pytest
import torch

from leansplit.server_app.closed_form import uploaded_positions
from leansplit.server_app.config import run_config
from leansplit.server_app.methods import METHODS, is_used
from leansplit.zeroth_order import joint_passes, passes_by_length
from tests.language import config_json, write_pairs, write_texts
from tests.whole_grid import WHOLE_GRID

ALL = list(METHODS)
OTHERS = ["sflv1", "zo-sfl", "hosl"]
OF_EACH_FAMILY = ["ho-sfl", "heron-sfl", "sflv2", "mu-splitfed", "decomfl", "fedavg"]
TINY = {  # of each family as much as is needed to be one
    "gpt2": {"n_layer": 3},
    "opt": {"num_hidden_layers": 3},
    "llama": {"num_hidden_layers": 3},
    "bert": {"num_hidden_layers": 3},
}
SPLIT = [name for name in ALL if name not in {"fedavg", "fedzo", "decomfl", "ho-fl"}]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def configure(method, family, data_path, **overrides):
    settings = {
        "task": "text",
        "task_options.data_path": data_path,
        "task_options.tokenizer": "bytes",
        "task_options.max_length": 32,
        "model_options.source": config_json(family, **TINY[family]),
        "model_options.lora_rank": 2,
        "cut_layer": "2",
        "clients": 4,
        "cohort": 2,
        "rounds": 3,
        "batch_size": 4,
        "evaluate_every": 3,
        "local_steps": 2,
        "client.name": "adamw",
        "client.lr": 0.01,
        "server.name": "adamw",
        "server.lr": 0.01,
        "probe.num_perturbations": 2,
        "alignment.epochs": 1,
    }
    if family == "bert":
        settings |= {"task_options.padding_side": "right", "server.lr": 0.02}
    else:
        settings["task_options.padding_side"] = "left"
    if overrides.get("task") == "generation":
        settings |= {
            "task_options.source_column": "asked",
            "task_options.target_column": "wanted",
            "generated_texts": 2,
        }
    used = {key: value for key, value in settings.items() if is_used(method, key)}
    return run_config(method, used | overrides)


# Every method with one family, and with every family one method of each kind.
WITH_EVERY_FAMILY = ["ho-sfl", "heron-sfl", "sflv2", "frozen"]
PAIRS = [
    (method, family)
    for i, method in enumerate(ALL)
    for j, family in enumerate(TINY)
    if method in WITH_EVERY_FAMILY or i % len(TINY) == j
]


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_equals_its_plain_loop_and_its_formula(
    method, family, texts, run_in_process, reference_checksum, expected
):
    config = configure(method, family, texts)
    outcome = run_in_process(config)
    assert (outcome.status, outcome.error, outcome.events) == ("completed", None, {})
    assert outcome.final_model_checksum == reference_checksum(config)
    require_formula(config, outcome, expected)
    assert {"f1"} <= outcome.measures.keys()
    if method in SPLIT:
        assert outcome.ledger.total_bytes(kind="masks") > 0


SORTING = [("ho-sfl", {}), ("ho-sfl", {"probe_ahead": True}), ("hosl", {}), ("frozen", {})]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(("method", "options"), SORTING)
def test_texts_in_order_of_their_length_change_no_message_and_only_rounding(
    method, options, padding_side, texts, run_in_process, monkeypatch
):
    options = options | {"task_options.padding_side": padding_side}
    options |= {"cohort": 4, "client.name": "sgd", "server.name": "sgd"}  # AdamW's signs would flip
    options = {k: v for k, v in options.items() if is_used(method, k) or "task" in k}
    family = "bert" if padding_side == "right" else "opt"
    lengths, run_by_length = [], joint_passes.run_by_length

    def noted(forward, batches):
        lengths.append({batch.shape[2] for batch in batches})
        return run_by_length(forward, batches)

    monkeypatch.setattr(joint_passes, "run_by_length", noted)
    monkeypatch.setattr(passes_by_length, "_PASS_POSITIONS", 48)  # several passes for few texts
    each, joined = (
        run_in_process(
            configure(method, family, texts, clients_per_node=4, joint_passes=mode, **options),
            afresh=True,
        )
        for mode in ("off", "on")
    )
    assert (joined.status, joined.error, joined.events) == ("completed", None, {})
    assert any(len(some) > 1 for some in lengths)
    assert list(joined.ledger) == list(each.ledger)
    for name, value in each.final_state.items():
        torch.testing.assert_close(joined.final_state[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("auxiliary", ["blocks", "copy"])
@pytest.mark.parametrize("method", ["heron-sfl", "cse-fsl", "fsl-sage"])
def test_heads_of_the_servers_blocks(
    method, auxiliary, texts, run_in_process, reference_checksum, expected
):
    heads = {"auxiliary.kind": auxiliary, "auxiliary.initialise": "server"}
    config = configure(method, "gpt2", texts, **heads)
    outcome = run_in_process(config)
    assert (outcome.status, outcome.error) == ("completed", None)
    assert outcome.final_model_checksum == reference_checksum(config)
    require_formula(config, outcome, expected)


@pytest.mark.parametrize(
    ("method", "whole"),
    [
        ("ho-sfl", {"full_blocks": 1}),  # adapters above it on the client too
        ("heron-sfl", {"full_blocks": 3, "full_embeddings": True}),  # the head's block as well
        ("sflv2", {"full_blocks": 2, "full_embeddings": True}),
    ],
)
def test_blocks_that_are_trained_whole(
    method, whole, texts, run_in_process, reference_checksum, expected
):
    options = {f"model_options.{name}": value for name, value in whole.items()}
    if method == "heron-sfl":
        options |= {"auxiliary.kind": "blocks", "auxiliary.initialise": "server"}
    config = configure(method, "gpt2", texts, **options)
    outcome = run_in_process(config)
    assert (outcome.status, outcome.error) == ("completed", None)
    assert outcome.final_model_checksum == reference_checksum(config)
    require_formula(config, outcome, expected)
    moved = {name.rpartition(".h.")[2][0] for name in outcome.final_state if "mlp" in name}
    assert moved == set("012"[: whole["full_blocks"]])
    assert any("wte" in name for name in outcome.final_state) is ("full_embeddings" in whole)


@pytest.mark.parametrize("method", ["ho-sfl", "heron-sfl", *(OTHERS if WHOLE_GRID else ())])
def test_a_base_in_half_precision(method, texts, run_in_process, reference_checksum, expected):
    config = configure(method, "llama", texts, **{"model_options.precision": "bfloat16"})
    outcome = run_in_process(config)
    assert (outcome.status, outcome.error) == ("completed", None)
    assert outcome.final_model_checksum == reference_checksum(config)
    require_formula(config, outcome, expected)
    assert {value.dtype for value in outcome.final_state.values()} == {torch.float32}
    whole = run_in_process(configure(method, "llama", texts))
    smashed = [run.ledger.total_bytes("uplink", "smashed_data") for run in (outcome, whole)]
    assert 2 * smashed[0] == smashed[1]


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_ho_sfl_that_probes_ahead(estimator, texts, run_in_process, reference_checksum, expected):
    """Masks, padding, half precision and parts of a batch: the bits of the loop, all the same."""
    options = {"probe.estimator": estimator, "probe_ahead": True, "micro_batch": 3}
    options |= {"model_options.precision": "bfloat16"}
    config = configure("ho-sfl", "llama", texts, **options)
    outcome = run_in_process(config)
    assert (outcome.status, outcome.error, outcome.events) == ("completed", None, {})
    assert outcome.final_model_checksum == reference_checksum(config)
    require_formula(config, outcome, expected)


@pytest.mark.parametrize("method", ALL if WHOLE_GRID else OF_EACH_FAMILY)
def test_texts_to_continue(method, pairs, run_in_process, reference_checksum, expected):
    heads = {"auxiliary.kind": "blocks", "auxiliary.initialise": "server"}
    used = {key: value for key, value in heads.items() if is_used(method, key)}
    config = configure(method, "gpt2", pairs, task="generation", **used)
    outcome = run_in_process(config)
    assert (outcome.status, outcome.error) == ("completed", None)
    assert outcome.final_model_checksum == reference_checksum(config)
    require_formula(config, outcome, expected)
    assert outcome.measures.keys() >= {"perplexity", "bleu", "rouge_l"}
    assert len(outcome.written.texts) == 2


def require_formula(config, outcome, expected):
    """Hold a ledger to the closed formula: kind by kind, but for the envelope."""
    run = expected(config)
    shape = dataclasses.replace(run.shape, client_samples=outcome.num_samples)
    predicted = METHODS[config.method].traffic(
        run.settings, shape, run.attendance, outcome.samples_seen
    )
    measured = {
        (direction, kind): outcome.ledger.total_bytes(direction, kind)
        for direction in ("uplink", "downlink")
        for kind in outcome.ledger.by_kind()
        if kind != "envelope" and outcome.ledger.total_bytes(direction, kind)
    }
    assert measured == predicted


def test_positions_are_those_of_the_uploaded_batches(texts):
    config = configure("cse-fsl", "gpt2", texts, upload_period=2)
    task = config.workload().load_task()
    settings = config.method_config()
    clients = [task.train.select(range(m, 60, 4)) for m in range(4)]
    both = uploaded_positions(clients.__getitem__, settings, 1, [0, 1], set())
    alone = [uploaded_positions(clients.__getitem__, settings, 1, [m], set()) for m in (0, 1)]
    assert both == sum(alone) and all(4 < n <= 4 * 32 for n in alone)
    every = configure("cse-fsl", "gpt2", texts).method_config()
    assert uploaded_positions(clients.__getitem__, every, 1, [0, 1], set()) > both
