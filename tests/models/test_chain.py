import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.models import build_model, chain, split_at


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def names(links):
    return [type(link).__name__ for link in links]


def composed(links, x):
    for link in links:
        x = link(x)
    return x


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.inner(x)


class Traced(nn.Module):
    """Functions, a skip connection, a flag, a parameter of its own and steps in place."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), Residual()))
        self.last = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        x = torch.tanh(self.first(x))  # one link, another link
        x = x + self.second(x)  # one link
        x = F.dropout(x, 0.0, training=self.training)  # one link: reads a flag
        x = x * self.scale  # one link
        x = self.third(x).add_(1.0)  # one link: the second step overwrites what the first made
        x = self.block(x)  # three links
        left, right = x.chunk(2, dim=1)  # with the next, one link: two values at a time
        return self.head(self.last(left * right))


def test_a_flat_client_model_falls_into_its_layers():
    model = build_model("digits-cnn", input_shape=(1, 8, 8), num_classes=10, seed=0)
    links = chain(split_at(model, "pool2").client_model)
    assert names(links) == ["Conv2d", "Tanh", "AvgPool2d"] * 2
    assert links[0] is model.conv1


def test_residual_blocks_stay_whole():
    model = build_model("resnet18", input_shape=(3, 8, 8), num_classes=2, seed=0)
    for cut in ("layer2", "layer2.1"):  # a stage that is called, one that is opened
        links = chain(split_at(model, cut).client_model)
        assert names(links) == ["Conv2d", "GroupNorm", "ReLU"] + 4 * ["BasicBlock"]


def test_a_traced_forward_is_cut_where_a_single_value_is_alive():
    client_model = split_at(seeded(Traced), "last").client_model
    links = chain(client_model)
    parts = ["Linear", *["TracedPart"] * 5, "Linear", "Tanh", "Residual", "TracedPart", "Linear"]
    assert names(links) == parts
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(composed(links, x), client_model(x))
    # Every parameter in the chain is the model's own, none is missing.
    held = {id(p) for link in links for p in link.parameters()}
    assert held == {id(p) for p in client_model.parameters()}
    scale = [link for link in links if "scale" in dict(link.named_parameters())]
    assert len(scale) == 1 and len(list(scale[0].parameters())) == 1


def test_links_follow_the_mode_they_are_put_in():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.last = nn.Identity()

        def forward(self, x):
            return self.head(self.last(F.dropout(self.first(x), 0.9, training=self.training)))

    links = chain(split_at(seeded(Dropping), "last").client_model)
    x = torch.ones(2, 4)
    for link in links:
        link.eval()
    assert composed(links, x).count_nonzero() == 8
    for link in links:
        link.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert composed(links, x).count_nonzero() < 8


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)],
        lambda: [nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.ReLU(inplace=True), Residual())],
    ],
)
def test_what_overwrites_its_input_stays_with_the_layer_before(layers):
    links = chain(nn.Sequential(*layers()))
    assert names(links)[0] == "Sequential" and len(links) == 2


def test_what_is_no_chain_is_one_link():
    hooked = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    for model in (Residual(), nn.Linear(4, 4), nn.Sequential(), hooked):
        assert chain(model) == [model]


def test_a_chain_of_a_copy_shares_nothing_with_the_original():
    client_model = split_at(seeded(Traced), "last").client_model
    other = chain(copy.deepcopy(client_model))
    held = {id(p) for p in client_model.parameters()}
    assert held.isdisjoint(id(p) for link in other for p in link.parameters())
