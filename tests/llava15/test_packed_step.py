"""The short training step computes what transformers computes: losses, gradients, whatever is in the batch."""

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ModelFormatError
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN
from llava_ohd.llava15.labelled_loss import labelled_loss
from llava_ohd.llava15.model import build
from llava_ohd.llava15.packed_step import packed, tower_features
from llava_ohd.llava15.packing import distinct, pack
from llava_ohd.llava15.stages import trainable

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none"}
PATCHES = 16


def batch(*rows: tuple[int, int, int], images: torch.Tensor | None = None, seed: int = 0) -> dict[str, Any]:
    """Rows of (tokens before, patches, tokens behind); every third token behind is trained."""
    random = torch.Generator().manual_seed(seed)
    longest = max(map(sum, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for number, (before, patches, behind) in enumerate(rows):
        length = before + patches + behind
        ids[number, :length] = torch.randint(3, 500, (length,), generator=random)
        ids[number, before : before + patches] = IMAGE_TOKEN
        mask[number, :length] = 1
        trained = torch.arange(before + patches + 1, length, 3)
        labels[number, trained] = ids[number, trained]
    made = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    count = sum(patches for _, patches, _ in rows) // PATCHES
    if images is None and count:
        images = torch.randn(count, 3, 32, 32, generator=random)
    return made | ({} if images is None else {"pixel_values": images})


def hidden_image(made: dict[str, Any]) -> dict[str, Any]:
    """Adds the image that `Batches` hides in a batch of text only."""
    rows = len(made["input_ids"])
    extra = torch.full((rows, PATCHES), 0)
    extra[0] = IMAGE_TOKEN
    made["input_ids"] = torch.cat([made["input_ids"], extra], 1)
    made["labels"] = torch.cat([made["labels"], torch.full_like(extra, IGNORE)], 1)
    made["attention_mask"] = torch.cat([made["attention_mask"], torch.zeros_like(extra)], 1)
    return made | {"pixel_values": torch.zeros(1, 3, 32, 32)}


SAME = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5)).expand(3, -1, -1, -1)
BATCHES = {
    "captions": batch((1, PATCHES, 9), (1, PATCHES, 12), (1, PATCHES, 6)),
    "conversations": batch((7, PATCHES, 40), (7, PATCHES, 5), (7, PATCHES, 90)),
    "text beside images": batch((7, PATCHES, 20), (1, 0, 70), (7, PATCHES, 33)),
    "the same image twice": batch((7, PATCHES, 20), (7, PATCHES, 11), (7, PATCHES, 33), images=SAME),
    "text only": hidden_image(batch((1, 0, 30), (1, 0, 12))),
    "one row": batch((3, PATCHES, 8)),
}


@pytest.fixture(scope="module")
def encoder(tiny_encoder_dir: Path) -> tower.Encoder:
    return tower.check(tiny_encoder_dir)


def model_of(stage: str, encoder: tower.Encoder, language: Path, short: bool) -> Any:
    made = build(language, encoder)
    model = trainable(packed(made) if short else made, stage, LORA)
    random = torch.Generator().manual_seed(3)  # adapters start with zeros otherwise
    for name, weight in model.named_parameters():
        if ".lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=random) * 0.1)
    return model.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_gradients(ours: Any, theirs: Any) -> None:
    found, expected = gradients(ours), gradients(theirs)
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values()) or 1.0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_loss_and_gradients(stage: str, name: str, encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    ours, theirs = (model_of(stage, encoder, tiny_llama_dir, short) for short in (True, False))
    losses = [model(**BATCHES[name]).loss for model in (ours, theirs)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    if name == "text only" and stage == "projector":
        losses[0].backward()
        assert gradients(ours)
        assert not any(gradient.any() for gradient in gradients(ours).values())
        return
    for loss in losses:
        loss.backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_gradient_accumulation(stage: str, encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    ours, theirs = (model_of(stage, encoder, tiny_llama_dir, short) for short in (True, False))
    parts = [BATCHES["conversations"], BATCHES["one row"]]
    count = sum((part["labels"] != IGNORE).sum() for part in parts)
    for part in parts:
        losses = [model(**part, num_items_in_batch=count).loss for model in (ours, theirs)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
        for loss in losses:
            loss.backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_checkpointing_recomputes_no_tower(stage: str, encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    ours, theirs = (model_of(stage, encoder, tiny_llama_dir, short) for short in (True, False))
    for model in (ours, theirs):
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    runs = {"tower": 0, "language model": 0}

    def count(part: str) -> Any:
        return lambda *_: runs.__setitem__(part, runs[part] + 1)

    layers = {name: module for name, module in ours.named_modules() if name.endswith("layers.0")}
    [tower_layer] = [module for name, module in layers.items() if "vision_tower" in name]
    [language_layer] = [module for name, module in layers.items() if "language_model" in name]
    tower_layer.self_attn.register_forward_hook(count("tower"))
    language_layer.self_attn.register_forward_hook(count("language model"))
    for model in (ours, theirs):
        model(**BATCHES["conversations"]).loss.backward()
    assert runs == {"tower": 1, "language model": 2}
    assert_same_gradients(ours, theirs)


def test_an_equal_image_is_seen_once(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    almost = SAME.clone()
    almost[1, 2, 31, 30] += 1
    assert distinct(SAME) == ([0], [0, 0, 0])
    assert distinct(almost) == ([0, 1], [0, 1, 0])
    model = packed(build(tiny_llama_dir, encoder))
    features, which = tower_features(model, almost)
    assert features.shape == (2, PATCHES, 32)
    assert which == [0, 1, 0]
    hidden = model.model.vision_tower(almost, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(features[which], hidden)


def test_a_text_batch_runs_no_tower(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    model = model_of("lora", encoder, tiny_llama_dir, short=True)
    tower_module = next(module for name, module in model.named_modules() if name.endswith("vision_tower"))
    tower_module.pre_layrnorm.register_forward_hook(lambda *_: pytest.fail("the tower ran"))
    assert model(**BATCHES["text only"]).loss > 0


def test_an_unfrozen_tower_gets_its_gradients(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    ours, theirs = (model_of("projector", encoder, tiny_llama_dir, short) for short in (True, False))
    for model in (ours, theirs):
        model.model.vision_tower.encoder.layers[0].requires_grad_(True)
        model(**BATCHES["conversations"]).loss.backward()
    assert any("vision_tower" in name for name in gradients(ours))
    assert_same_gradients(ours, theirs)


def test_without_labels_it_is_the_model_that_it_was(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    ours, theirs = packed(build(tiny_llama_dir, encoder)), build(tiny_llama_dir, encoder)
    asked = {key: value for key, value in BATCHES["conversations"].items() if key != "labels"}
    torch.testing.assert_close(ours(**asked).logits, theirs(**asked).logits)
    one = {key: value for key, value in BATCHES["one row"].items() if key != "labels"}
    one["input_ids"] = one["input_ids"].clamp(min=-200)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(**one, **options), theirs.generate(**one, **options))


def test_what_does_not_fit_is_refused(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    model = packed(build(tiny_llama_dir, encoder))
    made = dict(BATCHES["captions"])
    for wrong, count in ((made["pixel_values"][:2], 32), (made["pixel_values"].repeat(2, 1, 1, 1), 96)):
        with pytest.raises(DataFormatError, match=f"48 image tokens, its images have {count} features"):
            model(**made | {"pixel_values": wrong})
    with pytest.raises(DataFormatError, match="48 image tokens, but no images"):
        model(**made | {"pixel_values": None})
    with pytest.raises(DataFormatError, match=r"a training batch has \['position_ids'\]"):
        model(**made, position_ids=made["input_ids"])
    hidden = made["attention_mask"].clone()
    hidden[1, -3:] = 0
    with pytest.raises(DataFormatError, match="hidden from attention has a label"):
        pack(made["input_ids"], made["labels"], hidden)
    model.model.language_model.config._attn_implementation = "eager"
    with pytest.raises(ModelFormatError, match="'eager' cannot train packed rows"):
        packed(model)


def unequal_rows(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **given: Any
) -> tuple[torch.Tensor, None]:
    """Attention as flash attention's kernel for rows of unequal length computes it from the same arguments."""
    assert mask is None
    ends = given["cu_seq_lens_q"]
    assert (ends.dtype, given["cu_seq_lens_k"] is ends) == (torch.int32, True)
    assert int(ends.diff().max()) == given["max_length_q"] == given["max_length_k"]
    rows = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in (query, key, value)), is_causal=True
        )
        for start, end in itertools.pairwise(ends.tolist())
    ]
    return torch.cat(rows, 2).transpose(1, 2), None


def test_flash_attention_gets_the_rows(
    encoder: tower.Encoder, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_test", unequal_rows)
    ours, theirs = build(tiny_llama_dir, encoder), build(tiny_llama_dir, encoder)
    ours.model.language_model.config._attn_implementation = "flash_attention_test"
    made = BATCHES["text beside images"]
    torch.testing.assert_close(packed(ours)(**made).loss, theirs(**made).loss, rtol=1e-6, atol=0)


def test_the_attention_that_was_asked_for(encoder: tower.Encoder, tiny_llama_dir: Path) -> None:
    model: Any = build(tiny_llama_dir, encoder, attention="eager")
    assert model.model.language_model.layers[0].self_attn.config._attn_implementation == "eager"
    if find_spec("flash_attn") is None:
        with pytest.raises(ModelFormatError, match=r"cannot be loaded as a Llama model: .*[Ff]lash"):
            build(tiny_llama_dir, encoder, attention="flash_attention_2")


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_loss_of_a_frozen_head(chunk: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ohd.llava15.labelled_loss._CHUNK", chunk)
    random = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False).to(kind)
    states = torch.randn(20, 8, generator=random).to(kind)
    targets = torch.randint(50, (20,), generator=random)
    results = []
    for frozen in (True, False):
        head.requires_grad_(not frozen)
        leaf = states.clone().requires_grad_()
        loss = labelled_loss(head, leaf, targets, 5)
        (3 * loss).backward()
        results.append((loss, leaf.grad))
    assert head.weight.grad is not None
    torch.testing.assert_close(results[0][0], results[1][0])
    rounding = 1e-6 if kind == torch.float32 else 1e-2  # of the largest
    torch.testing.assert_close(
        results[0][1], results[1][1], rtol=1e-6, atol=rounding * float(results[1][1].abs().max())
    )
    by_hand = torch.nn.functional.cross_entropy(head(states).float(), targets, reduction="sum") / 5
    torch.testing.assert_close(results[0][0], by_hand)
