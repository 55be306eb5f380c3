"""Tiny language models and texts for tests: every family, no file, no network."""

import json

VOCABULARY = 258  # that of the byte tokenizer
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
_LLAMA = _COMMON | {
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CONFIGS = {
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 4,
        "n_head": 2,
        "n_positions": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
    },
    "opt": _COMMON
    | {"ffn_dim": 32, "max_position_embeddings": 128, "word_embed_proj_dim": 16, "dropout": 0.1},
    "opt-projected": _COMMON
    | {
        "model_type": "opt",
        "ffn_dim": 32,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 8,
        "do_layer_norm_before": False,
    },
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 4},
    "qwen2": {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    "qwen3": _LLAMA,
    "gemma3_text": _LLAMA
    | {
        "sliding_window": 4,
        "final_logit_softcapping": 30.0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "bert": _COMMON | {"intermediate_size": 32, "max_position_embeddings": 128},
}
"""Name -> configuration of a model of four blocks."""

DECODERS = [name for name in CONFIGS if name != "bert"]


def config_json(name: str, **overrides: object) -> str:
    """Return a configuration as ``model_options.source`` takes it."""
    return json.dumps({"model_type": name, **CONFIGS[name], **overrides})


POSITIVE = ["good", "fine film", "a joy to watch", "great", "so very well made, really"]
NEGATIVE = ["bad", "dull film", "a chore", "poor", "so badly made that it hurts, really"]


def write_texts(folder, num_train: int = 60, num_test: int = 20) -> str:
    """Write labelled texts of several lengths as CSV files; return the folder."""
    for name, num_rows in (("train", num_train), ("test", num_test)):
        rows = ["sentence,label"]
        for i in range(num_rows):
            words = (POSITIVE if i % 2 else NEGATIVE)[(i // 2) % 5]
            rows.append(f'"{words} {"!" * (i % 4)}",{i % 2}')
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return str(folder)


def write_pairs(folder, num_train: int = 40, num_test: int = 12) -> str:
    """Write texts to continue as CSV files; return the folder."""
    for name, num_rows in (("train", num_train), ("test", num_test)):
        rows = ["asked,wanted"]
        letters = [("xyz"[i % 3], 1 + i % 4) for i in range(num_rows)]
        rows += [f'"name[{letter * times}]","It is {letter}."' for letter, times in letters]
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return str(folder)
