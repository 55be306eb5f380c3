"""Options and faults of the methods with auxiliary heads, against their reference loops."""

import pytest
import torch

from leansplit.clients.app import split_client_app
from leansplit.errors import RunFailedError, UserError
from leansplit.federated import (
    AlignmentConfig,
    CSEFSLConfig,
    FSLSAGEConfig,
    HeronSFLConfig,
    OptimizerConfig,
    sample_cohort,
)
from leansplit.models import AuxiliaryConfig, split_at
from leansplit.parameters import trainable_parameters
from leansplit.server_app.methods import METHODS
from leansplit.strategies import Deployment
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples

LOCAL_LOSS = ["cse-fsl", "heron-sfl"]
ALL = [*LOCAL_LOSS, "fsl-sage"]
OPTIONS = [
    {"server_mode": "averaged"},
    {"server_mode": "averaged", "server.lifetime": "round"},
    {"server_mode": "summed"},
    {"client_order": "sequential"},
    {"auxiliary.kind": "copy", "upload_period": 1},
    {"auxiliary.initialise": "server", "client.lifetime": "round"},
    {"auxiliary.kind": "blocks", "cut_layer": "pool1"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("method", ALL)
def test_every_option_equals_the_reference(
    method, options, configure, run_in_process, reference_checksum
):
    settings = {"rounds": 5, "local_steps": 3, "upload_period": 2} | options
    config = configure(method, **settings)
    outcome = run_in_process(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("direction", ["rademacher", "sphere", "unit_sphere"])
@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_heron_equals_its_reference_with_every_estimator(
    direction, estimator, configure, run_in_process, reference_checksum
):
    keys = {"probe.direction": direction, "probe.estimator": estimator}
    config = configure("heron-sfl", rounds=4, local_steps=3, upload_period=2, **keys)
    assert run_in_process(config).final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("lifetime", ["run", "round"])
def test_fsl_sage_equals_its_reference_with_either_alignment_lifetime(
    lifetime, configure, run_in_process, reference_checksum
):
    config = configure("fsl-sage", rounds=8, **{"alignment_optimizer.lifetime": lifetime})
    assert run_in_process(config).final_model_checksum == reference_checksum(config)


def test_server_modes_and_orders_differ(configure, run_in_process):
    sums = {
        run_in_process(
            configure("cse-fsl", rounds=2, local_steps=2, upload_period=1, **options)
        ).final_model_checksum
        for options in ({}, *OPTIONS[:1], *OPTIONS[2:4])
    }
    assert len(sums) == 4


@pytest.mark.parametrize("method", ALL)
def test_a_round_takes_one_exchange(method, configure, run_in_process):
    outcome = run_in_process(configure(method, rounds=3, local_steps=4, upload_period=1))
    assert outcome.num_exchanges == 3 + 1  # and the set-up


@pytest.mark.parametrize("method", ALL)
def test_all_uploads_are_priced(method, configure, run_in_process):
    def smashed_bytes(**options):
        ledger = run_in_process(configure(method, rounds=2, local_steps=4, **options)).ledger
        return ledger.total_bytes("uplink", "smashed_data")

    each = smashed_bytes(upload_period=1)
    assert each == 2 * smashed_bytes(upload_period=2) == 4 * smashed_bytes(upload_period=4)


# --- with the strategies in hand ----------------------------------------------------------------


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3)]
        return split_at(torch.nn.Sequential(*layers, torch.nn.Linear(6, 3)), "2")


def data(client_id):
    generator = torch.Generator().manual_seed(client_id)
    n = 6 + client_id
    return Examples(
        torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    )


LOSS = torch.nn.functional.cross_entropy
CONFIGS = {"cse-fsl": CSEFSLConfig, "heron-sfl": HeronSFLConfig, "fsl-sage": FSLSAGEConfig}


def start(method, config, rounds=4, load=data, make=build, fault=None):
    strategy = METHODS[method].strategy(build(), LOSS, config, deployment=Deployment(num_clients=4))
    grid = InProcessGrid(split_client_app(make, load, LOSS), 4, fault=fault)
    strategy.start(grid=grid, initial_arrays=strategy.initial_arrays(), num_rounds=rounds)
    return strategy


def settings(method, **changes):
    more = {"alignment": AlignmentConfig(period=2, epochs=3)} if method == "fsl-sage" else {}
    return CONFIGS[method](cohort_size=2, batch_size=5, local_steps=2, **more | changes)


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("method", LOCAL_LOSS)
def test_heads_equal_the_references_too(method):
    config = settings(method)
    strategy, model = start(method, config), build()
    end = METHODS[method].reference(model, LOSS, [data(m) for m in range(4)], config, 4)
    same(trainable_parameters(strategy.local), end)


def test_fsl_sages_heads_equal_the_references_too():
    config = settings("fsl-sage")
    strategy = start("fsl-sage", config, rounds=6)
    heads = METHODS["fsl-sage"].reference(build(), LOSS, [data(m) for m in range(4)], config, 6)
    assert strategy.heads.keys() == heads.keys()
    for m, head in heads.items():
        same(strategy.heads[m].weights, trainable_parameters(head))
    different = {str(h.weights["fc.weight"].sum()) for h in strategy.heads.values()}
    assert len(different) == len(heads) > 1  # every client keeps its own


def test_fsl_sages_buffer_holds_the_newest_uploads():
    config = settings(
        "fsl-sage", alignment=AlignmentConfig(period=1, epochs=1, max_samples=7), upload_period=1
    )
    strategy = start("fsl-sage", config)
    for head in strategy.heads.values():
        assert head.smashed_data.shape == (7, 6) and head.labels.shape == (7,)
    last = max(sample_cohort(0, 4, range(4), 2))
    from leansplit.federated import take_batch

    newest = take_batch(data(last), 0, 4, last, 1, batch_size=5)[1]
    assert torch.equal(strategy.heads[last].labels[-5:], newest)


def test_a_client_that_failed_is_sent_its_head_again():
    """It may have been restarted and have lost its memory."""
    full = settings("fsl-sage", alignment=AlignmentConfig(period=100, epochs=1))
    full = type(full)(**{**vars(full), "cohort_size": 4})

    def fault(message, partition_id):
        is_third = message.metadata.group_id == "3"
        return "restarted" if is_third and partition_id == 1 else None

    def heads_sent(strategy, client_id):
        weights = [
            entry.num_bytes
            for entry in strategy.ledger
            if (entry.client_id, entry.direction, entry.kind) == (client_id, "downlink", "weights")
        ]
        return [num_bytes > min(weights) for num_bytes in weights]

    plain, faulty = start("fsl-sage", full, 5), start("fsl-sage", full, 5, fault=fault)
    assert heads_sent(plain, 1) == [True, True, False, False, False]
    assert heads_sent(faulty, 0) == [True, True, False, False, False]
    assert heads_sent(faulty, 1)[-2:] == [True, False]


def test_a_client_without_a_head_says_so_and_is_dropped():
    from leansplit.clients.memory import ClientMemory

    original, forgotten = ClientMemory.load, []

    def load(self, name):
        if name == "auxiliary" and not forgotten:
            forgotten.append(name)
            return None
        return original(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientMemory, "load", load)
        strategy = start("fsl-sage", settings("fsl-sage"), rounds=6)
    assert strategy.events == {"dropped_clients": 1, "dropped_error": 1}


@pytest.mark.parametrize("method", ALL)
def test_clients_with_other_input_shapes_are_refused(method):
    """Convolutions take any size; one auxiliary head does not."""

    def convolution():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pool = torch.nn.AdaptiveAvgPool2d(1)
            layers = [torch.nn.Conv2d(1, 2, 3), pool, torch.nn.Flatten(), torch.nn.Linear(2, 3)]
            return split_at(torch.nn.Sequential(*layers), "0")

    def load(client_id):
        size = 8 if client_id == 3 else 6
        return Examples(torch.zeros(6, 1, size, size), torch.zeros(6, dtype=torch.int64))

    strategy = METHODS[method].strategy(
        convolution(), LOSS, settings(method), deployment=Deployment(num_clients=4)
    )
    grid = InProcessGrid(split_client_app(convolution, load, LOSS), 4)
    with pytest.raises(RunFailedError, match=r"smashed data of client \d have the shape"):
        strategy.start(grid=grid, initial_arrays=strategy.initial_arrays(), num_rounds=1)


@pytest.mark.parametrize("method", ALL)
def test_a_head_that_the_client_builds_from_another_checkpoint_is_refused(method):
    def frozen(value):
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
            model[1].weight.requires_grad_(False).fill_(value)
        return split_at(model, "0")

    config = settings(method, auxiliary=AuxiliaryConfig(kind="copy", initialise="server"))
    strategy = METHODS[method].strategy(
        frozen(1.0), LOSS, config, deployment=Deployment(num_clients=4)
    )
    grid = InProcessGrid(split_client_app(lambda: frozen(2.0), data, LOSS), 4)
    with pytest.raises(RunFailedError, match="load the same checkpoint on both sides"):
        strategy.start(grid=grid, initial_arrays=strategy.initial_arrays(), num_rounds=5)


@pytest.mark.parametrize("method", ALL)
def test_a_client_that_returns_weights_beyond_all_numbers_is_dropped(method):
    def fatal(client_id):
        found = data(client_id)
        return Examples(found.inputs * (float("inf") if client_id == 2 else 1), found.labels)

    config = settings(method, client_optimizer=OptimizerConfig(lr=0.1, lifetime="round"))
    config = type(config)(**{**vars(config), "cohort_size": 4})
    strategy = start(method, config, rounds=3, load=fatal)
    assert strategy.events == {"dropped_clients": 3, "dropped_non_finite": 3}
    assert all(value.isfinite().all() for value in strategy.model.full_model.state_dict().values())


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("cse-fsl", {"upload_period": 0}, "upload_period must be at least 1"),
        (
            "cse-fsl",
            {"upload_period": 2},
            "upload_period 2 is above local_steps 1",
        ),
        ("fsl-sage", {"upload_period": 6, "local_steps": 5}, "at most 5, or more local"),
        (
            "heron-sfl",
            {"upload_period": 5, "local_steps": 4},
            "starts anew in every round",
        ),
        ("heron-sfl", {"server_mode": "sumed"}, "did you mean 'summed'"),
        ("fsl-sage", {"client_order": "random"}, "unknown client order"),
        ("heron-sfl", {"local_steps": 0}, "local_steps must be at least 1"),
    ],
)
def test_bad_settings_are_refused(method, changes, message):
    with pytest.raises(UserError, match=message):
        CONFIGS[method](cohort_size=1, **changes)


@pytest.mark.parametrize("name", ["period", "epochs", "batch_size", "max_samples"])
def test_bad_alignment_is_refused(name):
    with pytest.raises(UserError, match=f"{name} must be at least 1"):
        AlignmentConfig(**{name: 0})


def test_a_head_that_cannot_be_built_ends_the_run_before_it_starts(configure, run_in_process):
    with pytest.raises(UserError, match="0 blocks before its last layer"):
        run_in_process(configure("heron-sfl", **{"auxiliary.kind": "blocks"}))
