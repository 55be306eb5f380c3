"""A tiny GPT-2 that has seen pubs and restaurants, and coffee shops for clients to learn from.

    python -m leansplit.experiments.tiny_gpt2 --out tiny-gpt2
    leansplit compare e2e_tiny_gpt2

No hub is needed: E2E's texts are enough. They are parted by what they describe. On all but the
coffee shops a tokenizer and a model of random weights are trained, in plain torch; the coffee shops
are what the experiment fine-tunes it on. OUT holds

    model/      config.json, model.safetensors and the tokenizer, for ``--model OUT/model``
    data/       train.parquet and test.parquet, for ``task_options.data_path=OUT/data``
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from torch import Tensor

from leansplit.errors import UserError
from leansplit.experiments.command_line import exit_on_errors, stdout
from leansplit.models import build_model
from leansplit.models.language.loading import quietly
from leansplit.noise import torch_seeded
from leansplit.sequences import trim
from leansplit.server_app.evaluation import evaluate
from leansplit.server_app.generation import write_texts
from leansplit.tasks import Examples, Task, load_task
from leansplit.tasks.known_texts import e2e_splits
from leansplit.tasks.text_metrics import token_loss

HELD_BACK: Final = "eatType[coffee shop]"
"""What the attribute lists of the clients' texts name, and of the model's own do not."""
MAX_LENGTH: Final = 128  # tokens of attribute list and text together
_END, _PADDING = "<end>", "<pad>"
_SIZES: Final[dict[str, Any]] = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": MAX_LENGTH}
_NO_DROPOUT: Final[dict[str, Any]] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def part_texts(out: Path, data: Path | None = None) -> Path:
    """Write what clients learn from to ``out/data``, and all else to ``out/before``.

    Returns:
        ``out/before``, a folder of train.parquet and test.parquet like the other.
    """
    for name, split in zip(("train", "test"), e2e_splits(data), strict=True):
        frame = split.to_pandas()
        is_held_back = frame["meaning_representation"].str.contains(HELD_BACK, regex=False)
        for folder, rows in (("data", is_held_back), ("before", ~is_held_back)):
            if not rows.any():
                raise UserError(f"the {name} split of E2E has no rows for {folder}: is it whole?")
            (out / folder).mkdir(parents=True, exist_ok=True)
            frame[rows].to_parquet(out / folder / f"{name}.parquet", index=False)
    return out / "before"


def save_tokenizer(texts: Iterable[str], folder: Path, vocabulary_size: int) -> None:
    """Train a tokenizer of byte pairs (Sennrich et al. 2016) and save it as transformers does."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(
        texts,
        vocab_size=vocabulary_size,
        special_tokens=[_PADDING, _END],
        show_progress=False,
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=pairs._tokenizer, pad_token=_PADDING, eos_token=_END
    ).save_pretrained(folder)


def new_gpt2(folder: Path) -> Any:
    """Return a GPT-2 of random weights for the tokenizer in ``folder``."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = GPT2Config(vocab_size=len(tokenizer), **_SIZES, **_NO_DROPOUT, **ids)
    with torch_seeded(0):
        return GPT2LMHeadModel(config)


def train(model: Any, examples: Examples, *, steps: int, batch_size: int, lr: float) -> float:
    """Train all weights with AdamW on the target's tokens; return the last steps' mean loss.

    The learning rate rises over a tenth of the steps and falls to nought (one cycle).
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(0)
    model.train()
    losses: list[float] = []
    for _ in range(steps):
        rows: Tensor = torch.randint(len(examples), (batch_size,), generator=generator)
        inputs, labels = trim(examples.inputs[rows], examples.labels[rows])
        ids, mask = inputs.unbind(1)
        loss = token_loss(model(input_ids=ids, attention_mask=mask).logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-max(1, steps // 10) :]))


def texts_of(folder: Path, model: Path, **limits: int) -> Task:
    """Return the E2E task of a folder, with the tokenizer beside a model."""
    return load_task(
        "e2e", data_path=str(folder), tokenizer=str(model), max_length=MAX_LENGTH, **limits
    )


def measured(folder: Path, model: Path) -> dict[str, float]:
    """Return accuracy, loss, perplexity, BLEU and ROUGE-L of a saved model on a folder's test.

    Of at most 500 test texts, and of the continuations of 50 prompts, as the experiment's.
    """
    task = texts_of(folder, model, max_train=1, max_test=500)
    whole = build_model(
        "language",
        input_shape=task.input_shape,
        num_classes=0,
        seed=0,
        options={"source": str(model), **task.model_options},
    )
    assert task.generation is not None
    written = write_texts(whole, task.generation, batch_size=64, at_most=50)  # type: ignore[arg-type]
    return {**evaluate(whole, task, batch_size=64).metrics, **written.scores()}


def main(
    out: Annotated[Path, typer.Option(help="Folder for model and data.")] = Path("tiny-gpt2"),
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of E2E; default: LEANSPLIT_DATA/e2e, or the hub."),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="Training steps.")] = 600,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of a step.")] = 16,
    lr: Annotated[float, typer.Option(min=0, help="Largest learning rate of AdamW.")] = 0.005,
    vocabulary_size: Annotated[int, typer.Option(min=300, help="Tokens.")] = 512,
) -> None:
    """Make the model and the data that the experiment e2e_tiny_gpt2 fine-tunes and learns from."""
    torch.set_num_threads(1)
    with exit_on_errors():
        before, model_folder = part_texts(out, data), out / "model"
        splits = e2e_splits(before)
        texts = (text for column in splits[0].column_names for text in splits[0][column])
        save_tokenizer(texts, model_folder, vocabulary_size)
        task = texts_of(before, model_folder)
        model = new_gpt2(model_folder)
        loss = train(model, task.train, steps=steps, batch_size=batch_size, lr=lr)
        with quietly():
            model.save_pretrained(model_folder)
        size = sum(parameter.numel() for parameter in model.parameters())
        stdout().print(f"{size:,} parameters, training loss {loss:.2f} nats a token")
        for name, folder in (("all but coffee shops", before), ("coffee shops", out / "data")):
            figures = measured(folder, model_folder)
            said = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
            stdout().print(f"test texts on {name}: {said}")
        stdout().print(f"model in {model_folder}, data in {out / 'data'}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
