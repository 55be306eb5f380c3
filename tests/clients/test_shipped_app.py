"""An app crosses to a worker with every message of a simulation: it ships as little as it can."""

import copy

import pytest
from flwr.app import Message
from ray import cloudpickle

from leansplit.clients import app as module
from leansplit.clients.app import SplitClientApp, split_client_app, task_client_app
from leansplit.clients.handlers import registered_handlers
from leansplit.wire import SetupReply, SetupRequest


def shipped(app):
    return cloudpickle.loads(cloudpickle.dumps(app))


def test_leansplits_own_app_is_a_name():
    app = task_client_app()
    assert len(cloudpickle.dumps(app)) < 500
    arrived = shipped(app)
    assert arrived is not app
    assert arrived._registered_funcs.keys() == app._registered_funcs.keys()
    assert f"train.{next(iter(registered_handlers()))}" in arrived._registered_funcs


def test_a_users_app_takes_its_provider_along():
    layers = 3

    def data(client_id):
        return client_id + layers

    app = split_client_app(lambda: layers, data)
    workload = shipped(app)._provider(None)
    assert (workload.model, workload.client_data(4)) == (3, 7)
    assert len(cloudpickle.dumps(app)) < 2_000


def test_actions_of_other_modules_are_taken_along():
    def handler(session, request):
        return SetupReply(num_samples=0, label_counts=[], fixed_checksum="")

    known = {**registered_handlers(), "of_a_notebook": (SetupRequest, handler)}
    app = SplitClientApp(module.provide_task_workload, known)
    arrived = shipped(app)
    assert "train.of_a_notebook" in arrived._registered_funcs
    request_type, answered_by = arrived._handlers["of_a_notebook"]
    assert request_type is SetupRequest
    assert answered_by(None, None).num_samples == 0
    assert shipped(arrived)._handlers.keys() == known.keys()


def test_a_lifespan_and_attributes_arrive():
    app, seen = task_client_app(), []
    app.note = "mine"
    assert shipped(app).note == "mine"
    app = task_client_app()

    @app.lifespan()
    def lifespan(context):
        context.append("began")
        yield
        context.append("ended")

    with shipped(app)._lifespan(seen):
        seen.append("answers")
    assert seen == ["began", "answers", "ended"]


def test_a_function_of_leansplits_that_a_user_replaced_stays_replaced():
    app = task_client_app()
    [name] = [name for name in app._registered_funcs if name.startswith("query.")]
    app._registered_funcs[name] = lambda message, context: "mine"
    assert shipped(shipped(app))._registered_funcs[name](None, None) == "mine"


def test_it_can_be_copied():
    app = task_client_app()
    app.note = "mine"
    for copied in (copy.copy(app), copy.deepcopy(app)):
        assert copied.note == "mine"
        assert copied._registered_funcs.keys() == app._registered_funcs.keys()


class Silent(SplitClientApp):
    def __call__(self, message, context):
        return "silence"


def test_a_subclass_arrives_as_it_is():
    app = Silent(module.provide_task_workload, registered_handlers())
    assert shipped(app)(None, None) == "silence"


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_user_adds_to_the_app_arrives(times):
    app = task_client_app()

    @app.evaluate()
    def evaluate(message: Message, context):
        return "added"

    for _ in range(times):
        app = shipped(app)
    assert len(cloudpickle.dumps(app)) < 3_000  # it, and nothing else
    assert app._registered_funcs["evaluate.default"](None, None) == "added"
    assert len(app._registered_funcs) == len(task_client_app()._registered_funcs) + 1
