"""FLOPs of operations: torch's own formulas, and those that it leaves out.

torch counts attention as the matrix products that it is made of: two forward, and five backward,
where the scores are computed again. What a causal mask hides is counted as well. Its registry has
the kernels of accelerators only (torch 2.13); the CPU's take the same formulas here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten

FLOP_FORMULAS: Final[Mapping[Any, Callable[..., int]]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
    **flop_registry,
}
"""Operation -> a function of its arguments and ``out_val``, its result."""

UNCOUNTED: Final = (
    _aten._native_multi_head_attention,
    _aten._transformer_encoder_layer_fwd,
    _aten.mkldnn_rnn_layer,
    _aten.mkldnn_rnn_layer_backward,
    _aten._grouped_mm,
    _aten.addbmm,
)
"""Operations that multiply matrices in one kernel and have no formula here."""
