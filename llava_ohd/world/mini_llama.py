"""The language model of the embedded world: a mini Llama that has read much and seen nothing.

It plays the part of Vicuna: it knows the world's language and LLaVA's v1 conversation form, answers questions about a
scene told in words, and guesses by theme and popularity where it is told little.
"""

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava_ohd.llava15.conversation import IGNORE, SYSTEM, encode
from llava_ohd.llava15.tokenizer import SentencePieceTokenizer
from llava_ohd.progress import track
from llava_ohd.world.language import conversations, first_lessons

__all__ = ["MiniLlamaConfig", "build_llama", "fit_llama", "train_llama_tokenizer", "train_mini_llama"]


@dataclass(frozen=True)
class MiniLlamaConfig:
    """Geometry and training of the mini Llama."""

    width: int = 160
    layers: int = 4
    heads: int = 5
    intermediate: int = 432
    vocabulary: int = 512  # pieces, 256 of them single bytes
    context: int = 256  # tokens
    lesson_steps: int = 1200  # of one short question each
    lesson_batch: int = 96
    steps: int = 3000  # in all; conversations after the lessons
    batch: int = 24
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100  # steps
    context_weight: float = 0.05  # loss weight of tokens that are not the assistant's
    seed: int = 0


def train_llama_tokenizer(sentences: list[str], folder: Path, vocabulary: int) -> SentencePieceTokenizer:
    """Trains a SentencePiece tokenizer with Llama's settings and writes `tokenizer.model` into the folder.

    Args:
        sentences: Text that holds every word which must become few pieces.
        folder: Where the tokenizer files go; original LLaVA (slow tokenizer) and transformers 5 both read them.
        vocabulary: Upper limit of its size, the 256 byte pieces included.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return SentencePieceTokenizer(folder / "tokenizer.model")


def build_llama(config: MiniLlamaConfig, vocabulary: int) -> LlamaForCausalLM:
    """Builds a Llama with random weights and tied embeddings."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
            tie_word_embeddings=True,
        )
    )


def _lesson(turn: tuple[str, str], tokenizer: SentencePieceTokenizer) -> tuple[list[int], list[int]]:
    """Tokenises a first lesson: one turn without the system prompt."""
    asked, answer = tokenizer([f"USER: {turn[0]} ASSISTANT:", turn[1]])["input_ids"]
    answer = [*answer, tokenizer.eos_token_id]
    return [tokenizer.bos_token_id, *asked, *answer], [IGNORE] * (len(asked) + 1) + answer


def _batches(config: MiniLlamaConfig, tokenizer: SentencePieceTokenizer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields ids (B, L) and loss weights (B, L), weight 0 where padded: first lessons, then conversations."""
    rng = np.random.default_rng(config.seed)
    lessons = (_lesson(turn, tokenizer) for turn in first_lessons(config.seed))
    talks = (encode("v1", turns, tokenizer) for turns in conversations(config.seed))
    for source, size, steps in (
        (lessons, config.lesson_batch, config.lesson_steps),
        (talks, config.batch, config.steps - config.lesson_steps),
    ):
        for done in range(0, steps, 16):
            # lengths vary much: sorting inside a pool of batches saves most of the padding
            pool = sorted(itertools.islice(source, 16 * size), key=lambda pair: len(pair[0]))
            for i in rng.permutation(16)[: steps - done]:
                yield padded(pool[i * size : (i + 1) * size], config.context_weight)


def padded(rows: list[tuple[list[int], list[int]]], context_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads pairs of ids and labels at the right: ids (B, L), loss weights (B, L).

    Args:
        rows: Token ids, and labels that are `IGNORE` where the assistant does not speak.
        context_weight: Weight of those tokens; the assistant's weigh 1, padding 0.
    """
    length = max(len(ids) for ids, _ in rows)
    ids, weights = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length)
    for row, (tokens, labels) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(tokens)] = torch.where(torch.tensor(labels) != IGNORE, 1.0, context_weight)
    return ids, weights


def fit_llama(
    model: LlamaForCausalLM, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], config: MiniLlamaConfig
) -> LlamaForCausalLM:
    """Trains a language model on ids (B, L) with loss weights (B, L).

    Returns:
        The model, in eval mode.
    """
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=config.steps,
        pct_start=config.warmup / config.steps,
        cycle_momentum=False,
    )
    limited = itertools.islice(batches, config.steps)
    for step, (ids, weights) in enumerate(track(limited, "training the language model", config.steps)):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def train_mini_llama(config: MiniLlamaConfig, folder: Path) -> LlamaForCausalLM:
    """Trains tokenizer and model; the tokenizer's files are written into the folder.

    Returns:
        The model in float32, eval mode.
    """
    sample = list(itertools.islice(conversations(config.seed), 4000))
    sentences = [text for turns in sample for turn in turns for text in turn]
    frame = [f"{SYSTEM} USER: ASSISTANT:"] * (len(sentences) // 8)  # often enough to become whole pieces
    tokenizer = train_llama_tokenizer([*sentences, *frame], folder, config.vocabulary)
    return fit_llama(build_llama(config, len(tokenizer)), _batches(config, tokenizer), config)
