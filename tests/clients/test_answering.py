"""Clients of one node that compute together: who fails fails alone."""

from dataclasses import dataclass

import pytest
import torch

from leansplit.clients.answering import answer_all, answer_of
from leansplit.clients.deferred import DeferredForward, then
from leansplit.federated import OptimizerConfig, Replica
from leansplit.noise import torch_seeded
from leansplit.parameters import trainable_parameters
from leansplit.wire import BehindReply
from leansplit.zeroth_order import JointPasses, ZerothOrderConfig


@dataclass
class Slow:
    """An answer that tells how it was computed."""

    group: str | None
    fails: bool = False
    poisons: bool = False

    def company(self, passes):
        return self.group

    def alone(self):
        if self.fails:
            raise ValueError("broken")
        return BehindReply(version=1, is_worker_gap=False)

    def together(self, others, passes):
        for other in others:
            if other.fails or other.poisons:
                raise RuntimeError("together it fails")
            yield BehindReply(version=len(others), is_worker_gap=False)


def versions(answers, mode="auto"):
    """Return what came of each answer: with how many it was computed, or what went wrong."""

    def handler(session, request):
        if isinstance(request, Exception):
            raise request
        return request

    asked = {client_id: (None, answer) for client_id, answer in answers.items()}
    settled, costs = answer_all(handler, asked, JointPasses(mode), None)
    assert costs is None and settled.keys() == answers.keys()
    return {m: a.version if isinstance(a, BehindReply) else str(a) for m, a in settled.items()}


def test_companies_stay_apart():
    answers = {3: Slow("a"), 1: Slow("b"), 2: Slow("a"), 4: Slow(None), 5: Slow(None)}
    assert versions(answers) == {3: 2, 2: 2, 1: 1, 4: 1, 5: 1}
    assert set(versions(answers, "off").values()) == {1}


def test_one_that_fails_does_not_touch_the_others():
    answers = {1: Slow("a"), 2: Slow("a", fails=True), 3: Slow("a"), 4: ValueError("no plan")}
    assert versions(answers) == {1: 3, 2: "broken", 3: 1, 4: "no plan"}


def test_what_fails_together_is_tried_alone():
    assert versions({1: Slow("a"), 2: Slow("a", poisons=True)}) == {1: 2, 2: 1}


def test_answers_can_be_changed_before_they_are_there():
    def later(reply):
        return BehindReply(version=reply.version + 10, is_worker_gap=False)

    now = BehindReply(version=1, is_worker_gap=False)
    assert then(now, later).version == 11
    with torch_seeded(0):
        linear = torch.nn.Linear(2, 2)
    replica = Replica(trainable_parameters(linear), OptimizerConfig(), ZerothOrderConfig())
    deferred = [
        DeferredForward(
            linear,
            replica,
            torch.ones(at, 2),
            lambda z: BehindReply(version=len(z), is_worker_gap=False),
        )
        for at in (3, 3, 4)
    ]
    changed = {at: then(one, later) for at, one in enumerate(deferred)}
    assert versions(changed) == {0: 13, 1: 13, 2: 14}


def test_what_went_wrong_is_raised():
    answer = BehindReply(version=0, is_worker_gap=False)
    assert answer_of({1: answer}, 1) is answer
    with pytest.raises(ValueError, match="broken"):
        answer_of({1: ValueError("broken")}, 1)
