"""The architecture that docs/extending.md adds: registered, cut, equal to the unsplit model."""

import json
import re
from pathlib import Path

import pytest
import torch

from leansplit.models import build_model, split_at
from leansplit.models.language import families
from tests.language import VOCABULARY
from tests.models.language.test_halves import batch, unsplit_logits

PAGE = Path(__file__).parents[3] / "docs" / "extending.md"
CONFIG = {
    "model_type": "gpt_neo",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 4,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


@pytest.fixture
def gpt_neo(monkeypatch):
    monkeypatch.setattr(families, "_families", dict(families._families))
    [code] = re.findall(r"<!-- gpt_neo\.py -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, "gpt_neo.py", "exec"), {})


@pytest.mark.usefixtures("gpt_neo")
@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_the_page_s_architecture_is_cut_like_ours(side):
    model = build_model(
        "language",
        input_shape=(2, 9),
        num_classes=3,
        seed=0,
        options={"source": json.dumps(CONFIG), "outputs": "tokens"},
    ).eval()
    tokens = batch(side)
    kept = tokens[:, 1] == 1
    for cut in ("1", "2", "3"):
        split = split_at(model, cut)
        got = split.server_model(split.client_model(tokens))
        assert torch.equal(got[kept], unsplit_logits(model, tokens)[kept])
