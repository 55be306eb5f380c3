"""Texts that a trained model writes, and how close they come to what was wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from leansplit.models.language.halves import WholeLanguageModel
from leansplit.tasks.task import Generation
from leansplit.tasks.tokens import prompt_rows, tokens, without_beginning

_ROOM = 4  # a prompt leaves at least this part of all positions to its continuation


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        prompts: each prompt once.
        texts: the continuation of each.
        references: the wanted texts of each, one or several.
    """

    prompts: list[str]
    texts: list[str]
    references: list[list[str]]

    def scores(self) -> dict[str, float]:
        """Return corpus BLEU (sacrebleu) and mean ROUGE-L (best reference), both in 0 to 100."""
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

        most = max(map(len, self.references))
        # sacrebleu wants as many references for each text: the missing ones are None.
        filled = [[*r, *[None] * (most - len(r))] for r in self.references]
        columns: Any = list(zip(*filled, strict=True))
        bleu = sacrebleu.corpus_bleu(self.texts, columns).score
        scorer = RougeScorer(["rougeL"], use_stemmer=False)
        best = [
            max(scorer.score(wanted, text)["rougeL"].fmeasure for wanted in references)
            for text, references in zip(self.texts, self.references, strict=True)
        ]
        return {"bleu": float(bleu), "rouge_l": 100 * sum(best) / len(best)}


def write_texts(
    model: WholeLanguageModel, generation: Generation, *, batch_size: int, at_most: int
) -> Written:
    """Continue the test prompts greedily, with cached attention, on the unsplit model.

    What the model's own ``generation_config.json`` asks for, such as penalties, is left out.

    Args:
        model: in evaluation mode afterwards as before.
        generation: prompts and what they should be continued to.
        batch_size: prompts continued at once.
        at_most: different prompts to continue.
    """
    from transformers import GenerationConfig

    wanted: dict[str, list[str]] = {}
    for prompt, reference in zip(generation.prompts, generation.references, strict=True):
        wanted.setdefault(prompt, []).append(reference)
    prompts = list(wanted)[:at_most]
    tokenizer, inner = generation.tokenizer, model.inner
    known = getattr(inner.config, "max_position_embeddings", None) or generation.max_length
    num_positions = min(generation.max_length, known)
    device = next(inner.parameters()).device
    was_training, own_config = model.training, inner.generation_config
    model.eval()
    texts: list[str] = []
    try:
        inner.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        for first in range(0, len(prompts), batch_size):
            rows = [
                without_beginning(row, num_positions - max(1, num_positions // _ROOM), tokenizer)
                for row in prompt_rows(tokenizer, prompts[first : first + batch_size])
            ]
            longest = max(map(len, rows))
            batch = tokens(rows, tokenizer.pad_id, "left", longest).to(device)
            config = GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,
                max_new_tokens=num_positions - longest,
                pad_token_id=tokenizer.pad_id,
                eos_token_id=tokenizer.eos_id,
            )
            with torch.inference_mode():
                written = inner.generate(
                    input_ids=batch[:, 0], attention_mask=batch[:, 1], generation_config=config
                )
            for row in written[:, longest:].tolist():
                ended = row.index(tokenizer.eos_id) if tokenizer.eos_id in row else len(row)
                texts.append(tokenizer.decode(row[:ended]).strip())
    finally:
        inner.generation_config = own_config
        model.train(was_training)
    return Written(prompts, texts, [wanted[prompt] for prompt in prompts])
