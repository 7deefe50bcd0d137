"""A padded batch as one long row without padding, and the attention that keeps its rows apart.

The rows of a batch differ in length, and LLaVA pads them to the longest. Here their tokens stand one behind the other;
linear layers then see real tokens only, and attention runs row after row, causal within each and without a mask.
With flash attention the same lengths go to its own kernel for rows of unequal length.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llava_ohd.errors import DataFormatError
from llava_ohd.llava15.conversation import IGNORE, IMAGE_TOKEN

__all__ = ["ROWS", "Packed", "distinct", "pack"]

ROWS = "llava_ohd_rows"
"""Name of the attention under which transformers finds `_attention_of_rows`."""
_SAMPLE = 997  # every so many values of an image are compared before all of them are


@dataclass(frozen=True)
class Packed:
    """A batch without padding. T tokens, of which K are followed by one that is trained, and P are image patches.

    Attributes:
        ids_1T: Token ids; an image token is `IMAGE_TOKEN`.
        positions_1T: Place of each token in its row, from 0.
        lengths: Tokens of each row.
        labelled_K: Which tokens predict a trained one.
        targets_K: The token that each of them must predict.
        patches_P: Which tokens are patches of an image.
        features_P: The row of the image features that each of them gets, over all images of the batch.
        last_feature: The last of these; -1 where there are none.
    """

    ids_1T: Tensor
    positions_1T: Tensor
    lengths: list[int]
    labelled_K: Tensor
    targets_K: Tensor
    patches_P: Tensor
    features_P: Tensor
    last_feature: int

    def attention(self, kind: str) -> dict[str, Any]:
        """Returns what a layer gets so that its attention of this kind, `ROWS` or flash, keeps the rows apart."""
        given: dict[str, Any] = {"position_ids": self.positions_1T, "attention_mask": None}
        if kind == ROWS:
            return given | {"row_lengths": self.lengths}
        ends = F.pad(torch.tensor(self.lengths).cumsum(0), (1, 0)).to(self.ids_1T.device, torch.int32)
        longest = max(self.lengths)
        return given | {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def pack(input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> Packed:
    """Takes the padding out of a batch.

    Args:
        input_ids: (B, L).
        labels: (B, L), `IGNORE` where nothing is trained; token t is predicted from the one before it.
        attention_mask: (B, L), 0 for padding and for a hidden image.

    Raises:
        DataFormatError: a token is trained that attention must not see.
    """
    shown = attention_mask.bool()
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    packed_targets = targets[shown]
    labelled_K = (packed_targets != IGNORE).nonzero().squeeze(1)
    if len(labelled_K) != int((targets != IGNORE).sum()):
        raise DataFormatError("a token that is hidden from attention has a label; labels of padding must be -100")
    places = input_ids == IMAGE_TOKEN
    order = places.flatten().cumsum(0).view_as(places) - 1
    features_P = order[places & shown]
    return Packed(
        ids_1T=input_ids[shown][None],
        positions_1T=(shown.cumsum(1) - 1)[shown][None],
        lengths=[length for length in shown.sum(1).tolist() if length],
        labelled_K=labelled_K,
        targets_K=packed_targets[labelled_K],
        patches_P=places[shown].nonzero().squeeze(1),
        features_P=features_P,
        last_feature=int(features_P[-1]) if len(features_P) else -1,
    )


def distinct(pixels: Tensor) -> tuple[list[int], list[int]]:
    """Finds images that occur more than once in a batch.

    Args:
        pixels: (I, 3, S, S).

    Returns:
        Indices of the D images that differ, and for each of the I images which of those it is.
    """
    first: list[int] = []
    which: list[int] = []
    seen: dict[tuple[float, ...], list[int]] = {}
    for image, sample in enumerate(pixels.flatten(1)[:, ::_SAMPLE].tolist()):
        alike = seen.setdefault(tuple(sample), [])
        same = next((place for place in alike if torch.equal(pixels[first[place]], pixels[image])), None)
        if same is None:
            same = len(first)
            first.append(image)
            alike.append(same)
        which.append(same)
    return first, which


def _attention_of_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_lengths: list[int] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention (1, H, T, D) of packed rows; that of transformers where none are packed."""
    if row_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"dropout_p": dropout, "is_causal": True, "scale": scaling, "enable_gqa": grouped}
    rows = [
        F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)
        for q, k, v in zip(*(states.split(row_lengths, 2) for states in (query, key, value)), strict=True)
    ]
    return torch.cat(rows, 1), None


AttentionInterface.register(ROWS, _attention_of_rows)
AttentionMaskInterface.register(ROWS, sdpa_mask)
