"""Strictness for every test: one thread, no traces on disk, no draw from a global generator."""

import logging
import os
import random
import signal
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("leansplit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("leansplit")

_TESTS = Path(__file__).parent
# Folders whose subjects must take randomness as an argument.
_GUARDED = {"noise", "federated", "zeroth_order", "strategies", "clients", "hybrid_order"}


# A shell that starts the tests in the background has them, and all they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Processes that tests start would otherwise have a thread for each core, each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What waits for processes of its own comes first: side by side with all the rest, and not at the
# end, where nothing is left to do meanwhile.
_SLOW = {"test_parallel", "test_extending", "test_resuming_commands", "test_plain_comparison"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not (item.get_closest_marker("ray") or item.path.stem in _SLOW))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _silent_flower():
    # Importing flwr sets its logger's level, so a level set here would not last.
    logging.getLogger("flwr").disabled = True


@pytest.fixture(autouse=True, scope="session")
def _cache_outside_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEANSPLIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker("data") and not os.environ.get("LEANSPLIT_DATA"):
        pytest.skip("LEANSPLIT_DATA names no folder with real data")


def global_random_states():
    """Return the exact state of every global generator on the CPU, by library."""
    name, words, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (name, words.tobytes(), *rest),
        "random": random.getstate(),
    }


@pytest.fixture(autouse=True)
def _global_generators_untouched(request):
    """Fail a test of guarded code that draws from, or seeds, a global generator."""
    if not _GUARDED & set(request.path.relative_to(_TESTS).parts):
        yield
        return
    before = global_random_states()
    yield
    after = global_random_states()
    changed = [library for library in before if before[library] != after[library]]
    if changed:
        pytest.fail(f"global random state changed: {', '.join(changed)}", pytrace=False)
