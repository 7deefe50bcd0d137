"""The language model of the embedded world: a mini Llama that has read much and seen nothing.

It plays the part of Vicuna: it knows the world's language and LLaVA's v1 conversation form, answers questions about a
scene told in words, and guesses by theme and popularity where it is told little.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava_ohd.llava15.conversation import IGNORE, SYSTEM, encode
from llava_ohd.llava15.tokenizer import SentencePieceTokenizer
from llava_ohd.progress import track
from llava_ohd.world.language import conversations

__all__ = ["MiniLlamaConfig", "build_llama", "train_llama_tokenizer", "train_mini_llama"]


@dataclass(frozen=True)
class MiniLlamaConfig:
    """Geometry and training of the mini Llama."""

    width: int = 160
    layers: int = 4
    heads: int = 5
    intermediate: int = 432
    vocabulary: int = 512  # pieces, 256 of them single bytes
    context: int = 256  # tokens
    conversations: int = 60_000  # read once each
    batch: int = 24
    learning_rate: float = 2e-3
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

    with tempfile.TemporaryDirectory() as scratch:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_prefix=f"{scratch}/tokenizer",
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
        (folder / "tokenizer.model").write_bytes(Path(scratch, "tokenizer.model").read_bytes())
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


def _batches(
    config: MiniLlamaConfig, tokenizer: SentencePieceTokenizer
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields ids (B, L), labels (B, L) and loss weights (B, L), padded at the right with ignored labels."""
    source = conversations(config.seed)
    while True:
        # lengths vary much: sorting inside a pool of batches saves most of the padding
        pool = sorted(
            (encode("v1", turns, tokenizer) for turns in itertools.islice(source, 16 * config.batch)),
            key=lambda e: len(e[0]),
        )
        order = np.random.default_rng(len(pool[0][0])).permutation(16)
        for i in order:
            rows = pool[i * config.batch : (i + 1) * config.batch]
            length = max(len(ids) for ids, _ in rows)
            ids = torch.zeros(len(rows), length, dtype=torch.long)
            weights = torch.zeros(len(rows), length)
            for row, (tokens, labels) in enumerate(rows):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                answer = torch.tensor(labels) != IGNORE
                weights[row, : len(tokens)] = torch.where(answer, 1.0, config.context_weight)
            yield ids, ids, weights


def train_mini_llama(config: MiniLlamaConfig, folder: Path) -> LlamaForCausalLM:
    """Trains tokenizer and model; the tokenizer's files are written into the folder.

    Returns:
        The model in float32, eval mode.
    """
    sample = list(itertools.islice(conversations(config.seed), 4000))
    sentences = [text for turns in sample for turn in turns for text in turn]
    frame = [f"{SYSTEM} USER: ASSISTANT:"] * (len(sentences) // 8)  # often enough to become whole pieces
    tokenizer = train_llama_tokenizer([*sentences, *frame], folder, config.vocabulary)
    model = build_llama(config, len(tokenizer)).train()
    steps = config.conversations // config.batch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=config.warmup / steps, cycle_momentum=False
    )
    batches = _batches(config, tokenizer)
    for step in track(range(steps), "training the language model"):
        ids, labels, weights = next(batches)
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()
