"""Over what a loss is averaged: transformers 5 and LLaVA's 4.37 differ where ranks have unlike many trained tokens.

    transformers 5         sum of the losses of all trained tokens of a step / their number, over all ranks
    LLaVA, on 4.37         mean over ranks and accumulated batches of (sum of a batch's losses / its trained tokens)

In the second, tokens of a batch with short answers weigh more. `--average_tokens_across_devices False` averages over
the tokens of a rank, and then over the ranks: with one batch per step and rank it is the second.

Source: transformers 5 Trainer `_get_num_items_in_batch`, `compute_loss`; 4.37 `training_step`.
"""

from typing import Any

__all__ = ["averaging"]


def averaging(training: Any) -> str:
    """Says how a run averages, and how far that is LLaVA's way.

    Args:
        training: `TrainingArguments`.
    """
    ranks, batches = training.world_size, training.gradient_accumulation_steps
    if ranks == 1 and batches == 1:
        return "loss: mean over the trained tokens of a batch, as LLaVA"
    if ranks > 1 and not training.average_tokens_across_devices:
        said = f"loss: mean over {ranks} ranks of the mean over their trained tokens"
        if batches == 1:
            return f"{said}, as LLaVA on transformers 4.37"
        return f"{said}, of {batches} accumulated batches together; LLaVA on transformers 4.37 takes each batch's own"
    cure = "; --average_tokens_across_devices False takes the ranks' own" if ranks > 1 else ""
    return (
        "loss: mean over all trained tokens of a step, as transformers 5; LLaVA on 4.37 takes the mean of the means of "
        f"ranks and accumulated batches{cure}"
    )
