"""What clients are sent: one encoding where they are told the same, and only there."""

import torch

from leansplit.strategies.federation import Federation
from leansplit.strategies.flower_records import unpack
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.wire import ForwardRequest, encode


class Reached(Federation):
    """Two clients to a node, all of which can be reached."""

    def __init__(self):
        self.plan = type("Plan", (), {"has_mask": False})()

    def reachable(self, client_ids):
        return list(client_ids)

    def node_of(self, client_id):
        return client_id // 2


def sent(requests):
    InProcessGrid(None, 1)  # makes this process one that may send Flower's messages
    messages = Reached().messages(requests, "ho_sfl_forward", 3)
    return {m: blob for message in messages for m, blob in unpack(message.content).items()}


def test_clients_that_are_told_the_same_share_one_encoding():
    weights, scalars = {"w": torch.arange(5.0)}, torch.tensor([0.5, 0.25])
    joins = {"target_version": 2, "weights": weights, "weights_version": 2}
    stays = {"target_version": 2, "base_version": 1, "known_round": 2, "scalars": scalars}
    requests = {
        **{m: ForwardRequest(round=3, **joins) for m in (0, 3, 4)},
        **{m: ForwardRequest(round=3, **stays) for m in (1, 2)},
    }
    blobs = sent(requests)
    assert blobs == {m: encode(request) for m, request in requests.items()}
    assert len({id(blob) for blob in blobs.values()}) == 2


def test_what_differs_anywhere_is_encoded_by_itself():
    weights = {"w": torch.arange(5.0)}
    requests = {
        0: ForwardRequest(round=3, weights=weights, weights_version=0),
        1: ForwardRequest(round=3, weights={"w": torch.arange(5.0)}, weights_version=0),
        2: ForwardRequest(round=3, weights=weights, weights_version=1),
        3: ForwardRequest(round=3, weights=weights, weights_version=1, is_resync=True),
        4: ForwardRequest(round=4, weights=weights, weights_version=0),
        5: ForwardRequest(round=3, missed_rounds=[1], missed_scalars=torch.zeros(1, 2)),
        6: ForwardRequest(round=3, missed_rounds=[2], missed_scalars=torch.ones(1, 2)),
        7: ForwardRequest(round=3),
    }
    blobs = sent(requests)
    assert blobs == {m: encode(request) for m, request in requests.items()}
    assert len({id(blob) for blob in blobs.values()}) == len(requests)
