"""What was trained, in the formats of peft and transformers, for use without leansplit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from leansplit.errors import UserError
from leansplit.models.language.adapters import AdapterConfig
from leansplit.models.language.completeness import replaceable_modules
from leansplit.models.language.halves import WholeLanguageModel
from leansplit.models.language.loading import quietly
from leansplit.models.language.lora import ADAPTER, to_peft
from leansplit.models.language.sources import is_pretrained
from leansplit.parameters import num_trainable

_TASK_TYPES = {"classes": "SEQ_CLS", "next_token": "CAUSAL_LM", "tokens": "CAUSAL_LM"}


def save_adapter(
    model: WholeLanguageModel, config: AdapterConfig, folder: str | Path, *, source: str
) -> None:
    """Write what was trained as a PEFT adapter, for ``PeftModel.from_pretrained``.

    Args:
        model: the trained model.
        config: what of it was trained.
        folder: made if it is not there; ``adapter_config.json`` and ``adapter_model.safetensors``.
        source: the base model that the adapter belongs to.

    Raises:
        UserError: if weights of the base were trained, which no adapter holds.
    """
    inner = model.inner
    if not config.holds_everything:
        raise UserError(
            "weights of the base model were trained, so an adapter cannot hold the result; save "
            "merged weights"
        )
    adapted = [name for name, module in inner.named_modules() if _is_adapted(module)]
    heads = [
        name
        for name in replaceable_modules(inner, model.family)
        if num_trainable(inner.get_submodule(name))
    ]
    peft_config = to_peft(config, inner, adapted, heads)
    peft_config.task_type = _TASK_TYPES[model.outputs]
    peft_config.base_model_name_or_path = source if is_pretrained(source) else ""
    peft_config.inference_mode = True
    state = {
        f"base_model.model.{name.replace(f'.{ADAPTER}', '')}": parameter.detach().cpu().contiguous()
        for name, parameter in inner.named_parameters()
        if parameter.requires_grad
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    peft_config.save_pretrained(str(folder))
    safetensors.torch.save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})


def save_merged(model: WholeLanguageModel, folder: str | Path) -> None:
    """Write the whole model with its adapters added to the weights, for ``from_pretrained``.

    Args:
        model: the trained model; it is not changed.
        folder: made if it is not there.
    """
    with quietly():
        model.inner.save_pretrained(Path(folder), state_dict=merged_state(model.inner))


def merged_state(inner: nn.Module) -> dict[str, Tensor]:
    """Return a model's state with its adapters merged, under the names it has without them.

    Of tied weights the first name alone is there, as in the library's own files.
    """
    adapted: dict[str, Any] = {n: m for n, m in inner.named_modules() if _is_adapted(m)}
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in inner.state_dict(keep_vars=True).items():
        if ".lora_" in name or id(value) in seen:
            continue
        seen.add(id(value))
        owner, is_base, last = name.rpartition(".base_layer.")
        if is_base and last == "weight":
            delta = adapted[owner].get_delta_weight(ADAPTER)
            merged = (value.detach().float() + delta.detach().float()).to(value.dtype)
        else:
            merged = value.detach().clone()
        state[f"{owner}.{last}" if is_base else name] = merged
    return state


def _is_adapted(module: nn.Module) -> bool:
    adapters = getattr(module, "lora_A", None)
    return isinstance(adapters, nn.ModuleDict) and ADAPTER in adapters
