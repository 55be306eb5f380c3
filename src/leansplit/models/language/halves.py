"""A language model cut after a block: halves that share the blocks of the unsplit model."""

from __future__ import annotations

import copy
import functools
from typing import Any, Final, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from leansplit.errors import UserError
from leansplit.models.language.chunked import ChunkedLogits
from leansplit.models.language.families import Family
from leansplit.sequences import pack, unpack

M = TypeVar("M", bound=nn.Module)

Outputs = Literal["classes", "next_token", "tokens"]
"""What a model puts out: scores of classes [B, C], logits of the token that follows the last one
[B, V], or of the token that follows each position [B, S, V]."""
OUTPUTS: Final[tuple[str, ...]] = get_args(Outputs)


class Facade(nn.Module):
    """A model behind a forward of our own: same children, same parameter names."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        for name, child in inner.named_children():
            self.add_module(name, child)
        self.__dict__["inner"] = inner  # not registered: its children are, under their own names

    @property
    def _inner(self) -> Any:
        return self.__dict__["inner"]

    def train(self, mode: bool = True) -> Facade:
        """Put the model in training or evaluation mode."""
        self._inner.train(mode)
        return super().train(mode)


class WholeLanguageModel(Facade):
    """An unsplit model from token ids and attention mask to outputs; ``split_at`` cuts it.

    Args:
        inner: a model of the transformers library with the head that ``outputs`` asks for.
        family: how its architecture is put together.
        outputs: what it puts out.

    Attributes:
        is_chunked: put out :class:`ChunkedLogits` where tokens are predicted.
    """

    def __init__(self, inner: nn.Module, family: Family, outputs: Outputs) -> None:
        super().__init__(inner)
        self.family = family
        self.outputs = outputs
        self.is_chunked = False

    @property
    def inner(self) -> Any:
        """The library's own model."""
        return self._inner

    @property
    def num_blocks(self) -> int:
        """How many blocks it has."""
        return len(self.family.blocks_of(self._inner))

    def forward(self, tokens: Tensor) -> Any:
        """Map tokens [B, 2, S] (ids, attention mask) to outputs, or what they are computed from."""
        ids, mask = tokens.unbind(1)
        return _outputs(
            self._inner, self.family, self.outputs, mask, self.is_chunked, input_ids=ids
        )

    def cut_layers(self) -> list[str]:
        """Return the allowed cuts: how many blocks the client holds, at least one on each side."""
        return [str(n) for n in range(1, self.num_blocks)]

    def halves_at(self, cut_layer: str) -> tuple[nn.Module, nn.Module]:
        """Return client and server model, on the modules of this one."""
        n = int(cut_layer)
        client = client_half(self._inner, self.family, n)
        return client, server_half(self._inner, self.family, self.outputs, slice(n, None))


class LanguageClientModel(Facade):
    """Embeddings and the blocks up to the cut."""

    def __init__(self, inner: nn.Module, family: Family) -> None:
        super().__init__(inner)
        self.family = family

    @property
    def smashed_width(self) -> int:
        """D + 1, the width of packed smashed data."""
        return int(self._inner.config.hidden_size) + 1

    @property
    def max_positions(self) -> int:
        """Positions of the longest sequence that the model takes; 0 where it does not say."""
        return int(getattr(self._inner.config, "max_position_embeddings", None) or 0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, 2, S] (ids, attention mask) to packed smashed data [B, S, D + 1]."""
        ids, mask = tokens.unbind(1)
        stack = self.get_submodule(self.family.stack)
        hidden = stack(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return pack(hidden, mask)

    def segments(self) -> list[nn.Module]:
        """Return the half as a chain of its blocks, the first with the embeddings."""
        num_blocks = len(self.family.blocks_of(self._inner))
        if num_blocks == 1:
            return [self]
        first = client_half(self._inner, self.family, 1)
        return [first, *(_middle_block(self._inner, self.family, i) for i in range(1, num_blocks))]


class LanguageBlock(Facade):
    """A block below the cut by itself, from packed hidden states to packed hidden states."""

    def __init__(self, inner: nn.Module, family: Family) -> None:
        super().__init__(inner)
        self.family = family

    def forward(self, packed: Tensor) -> Tensor:
        """Map packed hidden states [B, S, D + 1] to those after the block."""
        hidden, mask = unpack(packed)
        stack = self.get_submodule(self.family.stack)
        hidden = stack(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state
        return pack(hidden, mask)


class LanguageServerModel(Facade):
    """Blocks above the cut, final norm and head; all of them, or the first in an auxiliary head.

    Attributes:
        is_chunked: put out :class:`ChunkedLogits` where tokens are predicted.
    """

    def __init__(
        self, inner: nn.Module, family: Family, outputs: Outputs, blocks: range, of: nn.Module
    ) -> None:
        super().__init__(inner)
        self.family = family
        self.outputs = outputs
        self.blocks = blocks
        self.is_chunked = False
        self.__dict__["whole"] = of

    @property
    def num_classes(self) -> int:
        """Outputs of a classification head; the library's own default where there is none."""
        return int(self._inner.config.num_labels)

    @property
    def label_bound(self) -> int:
        """Labels are indices below this: of classes, or of tokens."""
        return self.num_classes if self.outputs == "classes" else int(self._inner.config.vocab_size)

    def first_blocks(self, num_blocks: int) -> LanguageServerModel:
        """Return a server model of the first blocks only, on the modules of this one.

        Raises:
            UserError: if there are fewer.
        """
        if num_blocks > len(self.blocks):
            raise UserError(
                f"auxiliary.num_blocks is {num_blocks}, but the server model has "
                f"{len(self.blocks)} blocks; use fewer, or another cut"
            )
        kept = slice(self.blocks.start, self.blocks.start + num_blocks)
        return server_half(self.__dict__["whole"], self.family, self.outputs, kept)

    def forward(self, smashed_data: Tensor) -> Any:
        """Map packed smashed data [B, S, D + 1] to outputs, or what they are computed from."""
        hidden, mask = unpack(smashed_data)
        return _outputs(
            self._inner, self.family, self.outputs, mask, self.is_chunked, inputs_embeds=hidden
        )


class HeldElsewhere(nn.Module):
    """Stands in for the server model where only a client is.

    Attributes:
        outputs: what the model puts out.
        num_classes: of a classification head.
    """

    def __init__(self, outputs: Outputs, num_classes: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.num_classes = num_classes

    def forward(self, smashed_data: Tensor) -> Tensor:
        """Refuse: a client has no server model."""
        raise RuntimeError("a client holds its own blocks only, not the server model")


def _outputs(
    inner: Any, family: Family, outputs: Outputs, mask: Tensor, is_chunked: bool, **inputs: Tensor
) -> Any:
    """Run a model with a head, or its upper half."""
    is_whole = outputs == "tokens" and not is_chunked
    if is_whole or not family.is_causal:
        logits: Tensor = inner(attention_mask=mask, use_cache=False, **inputs).logits
        return logits
    # The library would look for the last token by its id, which nobody has above the cut, and put
    # out the logits of all positions where one is wanted.
    stack = inner.get_submodule(family.stack)
    hidden = stack(attention_mask=mask, use_cache=False, **inputs).last_hidden_state
    if outputs == "tokens":
        return ChunkedLogits(hidden, functools.partial(_unembed, inner))
    last = hidden[torch.arange(len(hidden), device=hidden.device), last_tokens(mask)]
    if outputs == "classes":
        return inner.score(last)
    return _unembed(inner, last)


def _unembed(inner: Any, hidden: Tensor) -> Tensor:
    """Return the logits [..., V] of hidden states [..., D] after the final norm."""
    logits: Tensor = inner.lm_head(hidden)
    cap = getattr(inner.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def last_tokens(mask: Tensor) -> Tensor:
    """Return the position [B] of each row's last token, from its mask [B, S]."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (mask * positions).argmax(1)


def client_half(inner: nn.Module, family: Family, num_blocks: int) -> LanguageClientModel:
    """Return embeddings and the first blocks of ``inner``, on its own modules."""
    return LanguageClientModel(_below_the_cut(inner, family, slice(0, num_blocks))[0], family)


def _middle_block(inner: nn.Module, family: Family, index: int) -> LanguageBlock:
    """Return one block of ``inner`` with neither embeddings nor what follows the last block."""
    root, stack = _below_the_cut(inner, family, slice(index, index + 1))
    for name, stand_in in family.below.items():
        stack._modules[name] = stand_in()
    return LanguageBlock(root, family)


def _below_the_cut(inner: nn.Module, family: Family, kept: slice) -> tuple[nn.Module, nn.Module]:
    """Return some blocks of ``inner``, and their stack, without what follows the last block."""
    root, stack = _opened(inner, family, kept)
    for name, stand_in in family.above.items():
        stack._modules[name] = stand_in()
    head = family.stack.partition(".")[0]
    for name in [name for name in root._modules if name != head]:
        del root._modules[name]
    return root, stack


def server_half(
    inner: nn.Module, family: Family, outputs: Outputs, kept: slice
) -> LanguageServerModel:
    """Return some blocks of ``inner`` above the cut with all that follows, on its own modules."""
    root, stack = _opened(inner, family, kept)
    for name, stand_in in family.below.items():
        stack._modules[name] = stand_in()
    blocks = range(*kept.indices(len(family.blocks_of(inner))))
    return LanguageServerModel(root, family, outputs, blocks, inner)


def shortened(config: Any, kept: slice) -> Any:
    """Return the configuration of a model that has some of the blocks only."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = len(range(*kept.indices(config.num_hidden_layers)))
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[kept]
    return config


class _Blocks(nn.ModuleList):
    """Some blocks of a model, under the names they have in it."""

    def __init__(self, blocks: Any = None, first: int = 0) -> None:
        super().__init__()
        for index, block in enumerate(blocks or (), first):
            self.add_module(str(index), block)


def _opened(inner: nn.Module, family: Family, kept: slice) -> tuple[nn.Module, nn.Module]:
    """Return copies of ``inner`` and its stack that hold some blocks only, nothing else copied."""
    root = _shell(inner)
    root.config = config = shortened(inner.config, kept)
    blocks = family.blocks_of(inner)[kept]
    at = root
    stack = root
    for depth, name in enumerate(path := family.path_to_blocks.split(".")):
        if depth == len(path) - 1:
            at._modules[name] = _Blocks(blocks, kept.start)
            break
        shell = _shell(at._modules[name])
        if hasattr(shell, "config"):
            shell.config = config
        at._modules[name] = at = shell
        if depth == len(family.stack.split(".")) - 1:
            stack = shell
    return root, stack


def _shell(module: M | None) -> M:
    """Return a copy that shares layers and tensors, but can be written to."""
    assert module is not None
    shell = type(module).__new__(type(module))
    for name, value in vars(module).items():
        shell.__dict__[name] = value.copy() if isinstance(value, dict | list) else value
    return shell
