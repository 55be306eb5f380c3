"""Cutting: the halves are the model under its own names, and impossible cuts are refused."""

import copy
import pickle
import re
import weakref
from collections import OrderedDict

import cloudpickle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from leansplit.errors import UserError
from leansplit.models import MODELS, SplitModel, build_model, cut_layers, split_at

SHAPES = {"digits-cnn": (1, 8, 8), "cifar-cnn": (3, 32, 32), "resnet18": (3, 8, 8)}
VARIANTS = [
    ("digits-cnn", {}),
    ("cifar-cnn", {}),
    ("cifar-cnn", {"norm": "group", "hidden": 0}),
    ("resnet18", {"width": 8}),
    ("resnet18", {"width": 8, "norm": "batch_frozen"}),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Thousands of small operations: more threads only wait for one another."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def registered(name, options):
    return build_model(name, input_shape=SHAPES[name], num_classes=10, seed=1, options=options)


def inputs_for(name, batch_size=2):
    return torch.randn(batch_size, *SHAPES[name], generator=torch.Generator().manual_seed(2))


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def train_whole(model, x):
    """Return the output and the gradients of one loss, by plain backpropagation."""
    model.zero_grad()
    output = model(x)
    output.square().mean().backward()
    return output.detach(), {name: g.clone() for name, g in gradients(model).items()}


def train_in_halves(split, x):
    """The same over the wire: the smashed gradient alone comes back."""
    split.full_model.zero_grad()
    smashed_data = split.client_model(x)
    received = smashed_data.detach().requires_grad_()
    output = split.server_model(received)
    output.square().mean().backward()
    if smashed_data.requires_grad:
        smashed_data.backward(received.grad)
    return output.detach(), gradients(split.client_model) | gradients(split.server_model)


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


def seeded(train, model, x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)  # for dropout
        return train(model, x)


def expect(model, x):
    """Return the output and gradients of the unsplit model, in eval and in train mode."""
    return {mode: seeded(train_whole, model.train(mode), x) for mode in (False, True)}


def assert_is_the_model(split, want, x):
    """Halves composed, and the full model, give the wanted output and gradients bit for bit."""
    for mode, (output, grads) in want.items():
        for part in (split.client_model, split.server_model, split.full_model):
            part.train(mode)
        for got_output, got_grads in (
            seeded(train_in_halves, split, x),
            seeded(train_whole, split.full_model, x),
        ):
            assert torch.equal(got_output, output)
            assert_same_bits(got_grads, grads)


def assert_names_fit(split, model):
    client, server = split.client_model.state_dict(), split.server_model.state_dict()
    assert not client.keys() & server.keys()
    assert client.keys() | server.keys() == model.state_dict().keys()
    assert list(split.full_state_dict()) == list(model.state_dict())
    assert_same_bits(split.full_state_dict(), dict(model.state_dict()))
    assert list(split.full_model.state_dict()) == list(model.state_dict())
    own = dict(model.named_parameters(remove_duplicate=False))
    for part in (split.client_model, split.server_model, split.full_model):
        for name, parameter in part.named_parameters(remove_duplicate=False):
            assert parameter is own[name]


class Residual(nn.Module):
    """A traceable block with a skip connection, and state of its own."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.full((1,), 0.5))
        self.register_buffer("shift", torch.ones(1))
        self.register_buffer("scratch", torch.full((1,), 2.0), persistent=False)

    def forward(self, x):
        hidden = F.dropout(F.relu(self.conv1(x)), 0.5, training=self.training)
        return x + self.conv2(hidden) * self.scale * self.scratch + self.shift


class ResidualNet(nn.Module):
    """Registers its head first, keeps blocks in a list and parameters at the top."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.stem = nn.Conv2d(3, 3, 1)
        self.blocks = nn.ModuleList([Residual(), Residual()])
        self.position = nn.Parameter(torch.randn(3, 1, 1))
        self.offset = nn.Parameter(torch.ones(2))

    def forward(self, x, mask=None):
        x = self.stem(x) + self.position
        if mask is not None:
            x = x * mask
        for block in self.blocks:
            x = block(x)
        x = F.dropout(x, 0.2, training=self.training)
        return self.head(x.mean((2, 3)).view(x.size(0), -1)) + self.offset


class Untraceable(nn.Module):
    """Its forward depends on the values it sees."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.linear(x) if x.sum() > 0 else -self.linear(x)
        return self.head(x)


class UntraceableBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x


def refusal(model, cut_layer):
    with pytest.raises(UserError) as caught:
        split_at(model, cut_layer)
    return str(caught.value)


def linears(*, num_layers=3):
    layers = OrderedDict()
    for number in range(1, num_layers + 1):
        layers[f"linear{number}"] = nn.Linear(4, 4)
        layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)


# --- what a cut gives -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_every_allowed_cut_of_every_registered_model_is_the_model(name, options):
    model = registered(name, options)
    x = inputs_for(name)
    want = expect(model, x)
    cuts = cut_layers(model)
    assert MODELS[name].default_cut_layer in cuts
    for cut_layer in cuts:
        split = split_at(model, cut_layer)
        assert split.cut_layer == cut_layer
        assert_is_the_model(split, want, x)
        assert_names_fit(split, model)


@pytest.mark.parametrize("name", SHAPES)
def test_the_default_cut_of_every_registered_model_at_full_size(name):
    model = registered(name, {})
    x = inputs_for(name)
    want = expect(model, x)
    assert_is_the_model(split_at(model, MODELS[name].default_cut_layer), want, x)


def test_every_registered_model_is_tested():
    assert {name for name, _ in VARIANTS} == set(SHAPES)
    assert set(SHAPES) <= set(MODELS)


def test_a_traceable_model_with_skip_connections_and_its_own_parameters_can_be_cut():
    model = ResidualNet()
    x = torch.randn(2, 3, 4, 4)
    assert cut_layers(model) == ["stem", "blocks.0", "blocks.1"]
    want = expect(model, x)
    for cut_layer in cut_layers(model):
        split = split_at(model, cut_layer)
        assert_is_the_model(split, want, x)
        assert_names_fit(split, model)
    names = list(split_at(model, "stem").client_model.state_dict())
    assert names == ["stem.weight", "stem.bias"]
    assert "position" in split_at(model, "blocks.0").client_model.state_dict()


def test_a_cut_inside_a_block_without_skip_connection_opens_the_block():
    model = nn.Sequential(OrderedDict(body=linears(), head=nn.Linear(4, 2)))
    split = split_at(model, "body.relu1")
    assert list(split.client_model.state_dict()) == ["body.linear1.weight", "body.linear1.bias"]
    assert_names_fit(split, model)
    assert cut_layers(model)[-2:] == ["body.relu3", "body"]  # a stage follows its last layer


def test_batch_norm_statistics_move_as_in_the_model():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(8, 2))
    twin = copy.deepcopy(model)
    split = split_at(model, "1")
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(split.server_model(split.client_model(x)), twin(x))
    assert_same_bits(split.full_state_dict(), dict(twin.state_dict()))
    assert split.full_state_dict()["1.num_batches_tracked"] == 1


def test_the_halves_share_modules_and_the_model_is_left_as_it_was():
    model = ResidualNet()
    model.blocks[0].eval()

    def describe():
        modules = list(model.named_modules())
        attributes = [sorted(vars(module)) for _, module in modules]
        flags = [(name, id(module), module.training) for name, module in modules]
        return flags, attributes, {name: t.clone() for name, t in model.state_dict().items()}

    flags, attributes, state = describe()
    global_state = torch.get_rng_state()
    split = split_at(model, "blocks.0")
    assert torch.equal(torch.get_rng_state(), global_state)
    assert describe()[:2] == (flags, attributes)
    assert_same_bits(describe()[2], state)
    assert split.client_model.get_submodule("blocks.0") is model.blocks[0]
    assert split.server_model.get_submodule("head") is model.head


def test_no_half_holds_a_layer_it_does_not_run():
    model = registered("resnet18", {"width": 4})
    x = inputs_for("resnet18")
    ran = []
    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda module, *_: ran.append(id(module)))
    for cut_layer in ("stem.conv", "layer2.0", "pool"):
        split = split_at(model, cut_layer)
        value = x
        for half in (split.client_model, split.server_model):
            ran.clear()
            value = half(value)
            held = [id(module) for module in half.modules() if not list(module.children())]
            assert sorted(held) == sorted(ran)


def test_a_stateless_layer_may_be_used_on_both_sides():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2))
    split = split_at(model, "2")
    x = torch.randn(3, 4)
    assert_is_the_model(split, expect(model, x), x)
    assert "forward calls it 2 times" in refusal(model, "1")


def test_ties_within_one_half_are_kept_under_both_names():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    model[3].weight = model[2].weight
    split = split_at(model, "0")
    assert_names_fit(split, model)
    x = torch.randn(2, 4)
    assert_is_the_model(split, expect(model, x), x)
    twice = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), twice, twice)
    assert_names_fit(split_at(model, "0"), model)


def test_a_frozen_stem_is_an_allowed_client_model():
    model = linears()
    model.linear1.requires_grad_(False)
    split = split_at(model, "relu1")
    x = torch.randn(2, 4)
    assert_is_the_model(split, expect(model, x), x)


def test_an_untraceable_block_may_stand_on_either_side():
    model = nn.Sequential(UntraceableBlock(), nn.Linear(4, 4), UntraceableBlock(), nn.Linear(4, 2))
    assert cut_layers(model) == ["0", "1", "2"]
    x = torch.randn(3, 4)
    for cut_layer in cut_layers(model):
        assert_is_the_model(split_at(model, cut_layer), expect(model, x), x)


def test_several_inputs_are_fine_while_only_the_client_reads_them():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
            self.join, self.head = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, a, b):
            return self.head(self.join(self.left(a) + self.right(b)))

    model = TwoInputs()
    assert cut_layers(model) == ["join"]
    split = split_at(model, "join")
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(split.server_model(split.client_model(a, b)), model(a, b))
    with pytest.raises(TypeError, match=re.escape("['a', 'b'], got 1")):
        split.client_model(a)
    assert "the model's input 'b'" in refusal(model, "left")


def test_in_place_operations_keep_their_order():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x)
            x.mul_(3)
            return self.second(x)

    model = InPlace()
    x = torch.randn(2, 4)
    split = split_at(model, "first")
    assert torch.equal(split.server_model(split.client_model(x)), model(x))


def test_values_are_freed_after_their_last_use():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            alive = [ref() is not None for ref in seen[1:]]  # the caller holds the first
            assert not any(alive[:-1]), "an earlier value is still held"
            y = x + 1
            seen.append(weakref.ref(y))
            return y

    model = nn.Sequential(*(Watch() for _ in range(6)), nn.Linear(2, 2))
    split = split_at(model, "4")
    with torch.inference_mode():
        split.client_model(torch.zeros(1, 2))


# --- what the halves can do -------------------------------------------------------------------


@pytest.mark.parametrize("cut_layer", ["stem", "blocks.0"])
def test_functional_call_takes_the_full_models_names(cut_layer):
    model = ResidualNet().eval()
    split = split_at(model, cut_layer)
    x = torch.randn(2, 3, 4, 4)
    shifted = {name: p + 0.1 for name, p in model.named_parameters()}
    with torch.inference_mode():
        want = functional_call(model, shifted, (x,))
        client, server = (
            {name: shifted[name] for name, _ in half.named_parameters()}
            for half in (split.client_model, split.server_model)
        )
        smashed_data = functional_call(split.client_model, client, (x,))
        assert torch.equal(functional_call(split.server_model, server, (smashed_data,)), want)
        assert torch.equal(functional_call(split.full_model, shifted, (x,)), want)
        assert not torch.equal(model(x), want)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda s: cloudpickle.loads(cloudpickle.dumps(s))],
    ids=["deepcopy", "cloudpickle"],
)
def test_copies_work_and_keep_sharing_among_themselves(duplicate):
    model = ResidualNet()
    split = split_at(model, "blocks.0")
    twin = duplicate(split)
    x = torch.randn(2, 3, 4, 4)
    assert_is_the_model(twin, expect(model, x), x)
    twin_full = dict(twin.full_model.named_parameters())
    for half in (twin.client_model, twin.server_model):
        for name, parameter in half.named_parameters():
            assert parameter is twin_full[name]
            assert parameter is not dict(model.named_parameters())[name]
    assert list(twin.full_state_dict()) == list(model.state_dict())


def test_plain_pickle_takes_even_very_deep_models():
    model = nn.Sequential(*(nn.Identity() for _ in range(2000)), nn.Linear(2, 2))
    client_model = split_at(model, "1990").client_model
    x = torch.ones(1, 2)
    assert torch.equal(pickle.loads(pickle.dumps(client_model))(x), x)


def test_full_state_dict_round_trip():
    model, other = ResidualNet(), ResidualNet()
    split = split_at(model, "blocks.0")
    split.load_full_state_dict(other.state_dict())
    assert_same_bits(dict(model.state_dict()), dict(other.state_dict()))
    other.load_state_dict(split.full_state_dict())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    model = linears()
    split = split_at(model, "relu1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    state["linear4.weight"] = state.pop("linear1.weight")
    state["linear2.bias"] = torch.zeros(5)
    with pytest.raises(UserError) as caught:
        split.load_full_state_dict(state)
    message = str(caught.value)
    assert "missing linear1.weight;" in message
    assert "unexpected linear4.weight;" in message
    assert "of wrong shape linear2.bias (5,), not (4,)" in message
    assert_same_bits(dict(model.state_dict()), before)


def test_halves_put_together_by_hand():
    split = SplitModel(nn.Linear(4, 3), nn.Linear(3, 2), "by hand")
    x = torch.randn(2, 4)
    assert torch.equal(split.full_model(x), split.server_model(split.client_model(x)))


# --- nested Sequentials, at random ------------------------------------------------------------

LEAVES = {
    "linear": lambda: nn.Linear(3, 3),
    "tanh": nn.Tanh,
    "dropout": lambda: nn.Dropout(0.4),
    "norm": lambda: nn.LayerNorm(3),
    "empty": nn.Sequential,
}
trees = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda children: st.lists(children, min_size=1, max_size=4),
    max_leaves=5,
)


def grow(tree):
    if isinstance(tree, str):
        return LEAVES[tree]()
    names = (f"{'stage' if isinstance(c, list) else c}{i}" for i, c in enumerate(tree))
    return nn.Sequential(OrderedDict(zip(names, map(grow, tree), strict=True)))


@settings(max_examples=12, deadline=None)
@given(st.lists(trees, min_size=1, max_size=3))
def test_any_nested_sequential(tree):
    with torch.random.fork_rng(devices=[]):
        model = grow([*tree, "linear"])
        x = torch.randn(2, 3)
        allowed = cut_layers(model)
        order = []
        handles = [
            module.register_forward_hook(lambda *_, name=name: order.append(name))
            for name, module in model.named_modules()
            if name
        ]
        model(x)
        for handle in handles:
            handle.remove()
        trainable_above = {
            name: any(
                isinstance(model.get_submodule(later), nn.Linear | nn.LayerNorm)
                for later in order[at + 1 :]
                if not name.startswith(f"{later}.")
            )
            for at, name in enumerate(order)
        }
        assert allowed == [name for name in order if trainable_above[name]]
        want = expect(model, x)
        for cut_layer in allowed:
            split = split_at(model, cut_layer)
            assert_is_the_model(split, want, x)
            assert_names_fit(split, model)


# --- what is refused --------------------------------------------------------------------------


def test_unknown_cut_layer():
    message = refusal(linears(), "linaer2")
    assert "unknown cut layer 'linaer2'" in message
    assert "did you mean 'linear2'" in message
    assert "allowed: linear1, linear2, relu1, relu2" in message
    assert "unknown cut layer ''" in refusal(linears(), "")
    assert "allowed: none" in refusal(nn.Linear(2, 2), "weight")


def test_nothing_left_for_the_server():
    model = nn.Sequential(OrderedDict(body=linears()))
    assert "nothing is left for the server model" in refusal(model, "body")
    assert "nearest allowed cuts: 'body.relu2'" in refusal(model, "body.relu3")


def test_a_server_without_trainable_parameters():
    model = linears()
    assert "the server model would have no trainable parameters" in refusal(model, "linear3")
    model.linear3.requires_grad_(False)
    assert "no trainable parameters" in refusal(model, "relu2")


def test_a_cut_inside_a_skip_connection_names_the_value_and_the_cuts_nearby():
    model = nn.Sequential(
        OrderedDict(stem=nn.Conv2d(3, 3, 1), block=Residual(), head=nn.Conv2d(3, 2, 1))
    )
    message = refusal(model, "block.conv1")
    assert "cannot cut Sequential after 'block.conv1'" in message
    assert "the server would also need the output of 'stem'" in message
    assert "skip connection" in message
    assert "nearest allowed cuts: 'stem', 'block'" in message
    assert cut_layers(model) == ["stem", "block"]
    message = refusal(ResidualNet(), "blocks.0.conv2")
    assert "the output of the operation 'add'" in message  # stem plus position
    assert "nearest allowed cuts: 'stem', 'blocks.0'" in message


def test_a_container_that_is_never_called():
    message = refusal(ResidualNet(), "blocks")
    assert "forward calls it 0 times" in message
    assert "nearest allowed cuts: 'stem', 'blocks.0'" in message


def test_tied_parameters_across_the_cut():
    model = linears()
    model.linear3.weight = model.linear1.weight
    message = refusal(model, "relu1")
    assert "both halves would use linear1.weight, linear3.weight" in message
    assert "nearest allowed cuts: none" in message
    assert cut_layers(model) == []


def test_a_parameter_read_directly_by_the_other_side():
    class TiedHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x):
            return F.linear(self.norm(self.mix(self.embed(x))), self.embed.weight)

    assert "both halves would use embed.weight" in refusal(TiedHead(), "mix")


def test_a_module_with_parameters_used_on_both_sides():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    message = refusal(model, "1")
    assert "both halves would use" in message
    assert all(name in message for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    assert "nearest allowed cuts: none" in message
    assert "forward calls it 2 times" in refusal(model, "2")


def test_untraceable_models_say_what_to_do():
    for action in (lambda: split_at(Untraceable(), "linear"), lambda: cut_layers(Untraceable())):
        with pytest.raises(UserError) as caught:
            action()
        message = str(caught.value)
        assert "Untraceable.forward cannot be traced by torch.fx" in message
        assert "control flow" in message
        assert "nn.Sequential" in message
        assert "cut_layers" in message


def test_a_cut_inside_an_untraceable_block_names_it_and_the_cuts_around_it():
    model = nn.Sequential(
        OrderedDict(stem=nn.Linear(4, 4), block=UntraceableBlock(), head=nn.Linear(4, 2))
    )
    message = refusal(model, "block.inner")
    assert "UntraceableBlock.forward of 'block' cannot be traced" in message
    assert "nearest allowed cuts: 'stem', 'block'" in message


def test_behaviour_that_a_trace_would_miss_is_refused():
    class Branches(Untraceable):
        def forward(self, x):
            return self.head(self.linear(x) if self.training else x)

    class Draws(Untraceable):
        def forward(self, x):
            return self.head(self.linear(x) + torch.randn(4))

    class Counts(Untraceable):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return self.head(self.linear(x))

    branching, drawing = Branches(), Draws()
    before = torch.get_rng_state()
    assert "control flow" in refusal(branching, "linear")
    assert "draws random numbers of a fixed shape" in refusal(drawing, "linear")
    assert torch.equal(torch.get_rng_state(), before)
    counting = Counts()
    assert "it assigns to its own attributes" in refusal(counting, "linear")
    assert counting.count == 0
    hooked = linears()
    hooked.register_forward_hook(lambda *_: None)
    assert "replaced or hooked" in refusal(hooked, "relu1")


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class OpaquePair(nn.Module):
    def forward(self, x):
        return (x, x) if x.sum() == x.sum() else x


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), Pair()], ids=["lstm", "pair"])
def test_an_output_that_is_not_one_tensor(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer, First(), nn.Linear(4, 2))
    assert "it returns several values, and exactly one tensor can cross" in refusal(model, "1")
    assert cut_layers(model) == ["0", "2"]


def test_an_output_that_is_taken_apart_outside_the_layer():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = OpaquePair(), nn.Linear(4, 2)

        def forward(self, x):
            output, _ = self.cell(x)
            return self.head(output)

    assert "it returns several values" in refusal(Recurrent(), "cell")


def test_an_output_that_shows_itself_only_at_run_time():
    model = nn.Sequential(nn.Linear(4, 4), OpaquePair(), First(), nn.Linear(4, 2))
    client_model = split_at(model, "1").client_model
    with pytest.raises(UserError, match="exactly one tensor can cross"):
        client_model(torch.zeros(1, 4))


def test_parameters_that_forward_never_uses():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.head, self.spare = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.used(x))

    message = refusal(Unused(), "used")
    assert "forward never uses spare.weight, spare.bias; remove them" in message


def test_long_lists_are_cut_short():
    wide = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    first = wide[0]
    for layer in wide:
        layer.weight = first.weight
    assert re.search(r"and \d+ more", refusal(wide, "4"))


@pytest.mark.parametrize("first_cut", ["layer1.0", "stem.relu", "layer3"])
def test_a_full_model_can_be_cut_again_wherever_the_unsplit_model_can(first_cut):
    model = build_model(
        "resnet18", input_shape=(3, 8, 8), num_classes=3, seed=0, options={"width": 4}
    )
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = split_at(model, first_cut).full_model
    assert cut_layers(whole) == cut_layers(model)
    for cut_layer in ("layer1", "layer2.0"):
        again, once = split_at(whole, cut_layer), split_at(model, cut_layer)
        assert torch.equal(again.server_model(again.client_model(inputs)), model(inputs))
        for half in ("client_model", "server_model", "full_model"):
            ours, theirs = getattr(again, half), getattr(once, half)
            assert list(ours.state_dict()) == list(theirs.state_dict())
            pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
            assert all(a is b for a, b in pairs)
