"""HF's Trainer as LLaVA's: its learning rates and sampler, checkpoints that are whole model folders, no hidden NaN.

Every checkpoint-N holds what the model folder at the end holds, so that it can be evaluated, and what a run needs to go
on: optimiser, schedule, random states. complete.json, written last, says that it is whole.

Source: haotian-liu/LLaVA train/llava_trainer.py @ c121f04.
"""

import errno
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import rotate_checkpoints

from llava_ohd.errors import StageFailed, StorageError
from llava_ohd.files import is_complete, mark_complete, storage_errors, write_json
from llava_ohd.llava15.model_dir import load_checkpoint, trained_weights
from llava_ohd.llava15.weight_names import part_of
from llava_ohd.progress import Progress
from llava_ohd.training.epochs import Epochs
from llava_ohd.training.exact_steps import ExactSteps

__all__ = ["LlavaTrainer", "RowOrder", "curve", "last_checkpoint"]

_POOL = 50  # batches; as HF's own LengthGroupedSampler


class LlavaTrainer(ExactSteps):
    """Trains one stage.

    Args:
        write: Writes the model folder: gets the folder and the trained weights under LLaVA's names.
        fingerprint: What the run is made from; it marks checkpoints.
        ids: Gives the `id` of rows of the training json, by their numbers.
        lengths: Per row its number of words, negative for rows of text only; for the order of the rows.
        **others: As for `Trainer`.
    """

    args: Any  # our TrainingArguments
    model: Any
    model_wrapped: Any

    def __init__(
        self,
        *,
        write: Callable[[Path, dict[str, Tensor]], None],
        fingerprint: str,
        ids: Callable[[list[int]], list[Any]],
        lengths: Sequence[int],
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self._write, self._fingerprint, self._ids, self._lengths = write, fingerprint, ids, lengths
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(f"training stage {self.args.stage}"))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the loss.

        Raises:
            StageFailed: it is not finite; the message names the rows of the batch, and the file that lists them.
        """
        numbers = inputs.pop("numbers")
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if not math.isfinite(value := loss.item()):
            self._stop(value, numbers)
        return loss

    def _stop(self, loss: float, numbers: list[int]) -> None:
        rank, step = self.args.process_index, self.state.global_step + 1
        file = Path(self.args.output_dir) / f"nonfinite_loss_rank{rank}.json"
        rows = [{"row": number, "id": name} for number, name in zip(numbers, self._ids(numbers), strict=True)]
        write_json(file, {"step": step, "rank": rank, "loss": str(loss), "rows": rows})
        raise StageFailed(
            f"the loss is {loss} at step {step}, rank {rank}, rows {numbers} of the training json (their ids: {file}): "
            "look at these rows, or give a lower --learning_rate. The same command goes on from the last checkpoint"
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Returns the optimiser; projector and tower have own learning rates where flags give them."""
        if self.optimizer is None:
            chosen: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(chosen))
            rates = {"projector": self.args.mm_projector_lr, "tower": self.args.mm_vision_tower_lr}
            own = {part: rate for part, rate in rates.items() if rate is not None}
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in chosen.named_parameters():
                if parameter.requires_grad:
                    part = part_of(name) if part_of(name) in own else ""  # first: the rate that is logged
                    groups.setdefault((part, name in decayed), []).append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, chosen)
            ordered: list[dict[str, Any]] = []
            for part, decays in sorted(groups):
                decay = self.args.weight_decay if decays else 0.0
                rate = {"lr": own[part]} if part else {}
                ordered.append({"params": groups[part, decays], "weight_decay": decay} | rate)
            self.optimizer = kind(ordered, **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        by_length = self.args.train_sampling_strategy == "group_by_length"
        pool = _POOL if by_length else int(self.args.group_by_modality_length)
        ranks = self.args.world_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = RowOrder(self._lengths, self.args.train_batch_size, ranks, seed, pool)
        self.add_callback(Epochs(order))
        return order

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model folder; all ranks must call it, rank 0 writes.

        Raises:
            StageFailed: a weight is not finite.
        """
        weights = trained_weights(self.model, keep=self.args.should_save)
        if wrong := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
            raise StageFailed(
                f"{wrong[0]} and {len(wrong) - 1} other weights hold NaN or Inf after step {self.state.global_step}: a "
                "gradient was not finite. Give a lower --learning_rate; nothing was written, what came before is whole"
            )
        if self.args.should_save:
            self._write(Path(output_dir or self.args.output_dir), weights)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go when this one is whole
        with _saving(folder):
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(folder, self._fingerprint)
                rotate_checkpoints(output_dir=self.args.output_dir, save_total_limit=limit)
        self.args.save_total_limit = limit

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Leaves the frozen weights out of DeepSpeed's checkpoints: they come from base and encoder every time."""
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        engine = self.model_wrapped
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        if resume_from_checkpoint is not None:
            deepspeed_load_checkpoint(engine, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_checkpoint(self.model, Path(resume_from_checkpoint))


class RowOrder(Sampler):
    """The order of the rows: shuffled, or in shuffled batches of one modality, dealt evenly to the ranks.

    Args:
        lengths: Per row its length, negative for rows of text only.
        batch: Rows per device and batch.
        ranks: Devices times accumulated batches.
        seed: With the epoch it fixes the order, so that a resumed run sees the same.
        pool: 0 shuffles rows. 1 is LLaVA's order, which makes batches of one modality and balances the ranks. More:
            rows are also sorted by length among as many batches, which leaves little padding.

    Source: haotian-liu/LLaVA train/llava_trainer.py `LengthGroupedSampler` @ c121f04.
    """

    def __init__(self, lengths: Sequence[int], batch: int, ranks: int, seed: int, pool: int = 0) -> None:
        self._lengths, self._batch, self._ranks, self._seed, self._pool = lengths, batch, ranks, seed, pool
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        if not self._pool:
            yield from torch.randperm(len(self), generator=random).tolist()
            return
        size = self._batch * self._ranks
        whole: list[list[int]] = []
        rest: list[int] = []
        for image in (True, False):
            rows = [row for row, length in enumerate(self._lengths) if (length > 0) == image]
            order = [rows[i] for i in torch.randperm(len(rows), generator=random).tolist()]
            cut = len(order) - len(order) % size
            rest += order[cut:]
            for start in range(0, cut, size * self._pool):
                pool = sorted(
                    order[start : min(start + size * self._pool, cut)], key=lambda row: -abs(self._lengths[row])
                )
                whole += [self._dealt(pool[first : first + size]) for first in range(0, len(pool), size)]
        for position in torch.randperm(len(whole), generator=random).tolist():
            yield from whole[position]
        yield from rest

    def _dealt(self, rows: list[int]) -> list[int]:
        """Deals rows, the longest first, each to the rank with the fewest words so far; rank after rank."""
        hands: list[list[int]] = [[] for _ in range(self._ranks)]
        for row in rows:
            open_hands = [hand for hand in hands if len(hand) < self._batch]
            min(open_hands, key=lambda hand: sum(abs(self._lengths[i]) for i in hand)).append(row)
        return [row for hand in hands for row in hand]


class _Watch(TrainerCallback):
    """Reports progress, and one line per logged step."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._progress: Progress | None = None
        self._logged = (0, 0.0)  # step, and when

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._logged = (state.global_step, time.monotonic())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._progress = self._progress or Progress(self._label, state.max_steps)
            self._progress.update(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            (step, then), now = self._logged, time.monotonic()
            self._logged = (state.global_step, now)
            print(
                f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
                f"learning rate {logs['learning_rate']:.2e}  gradient {logs.get('grad_norm', float('nan')):.3f}  "
                f"{(now - then) / max(state.global_step - step, 1):.2f} s/step",
                flush=True,
            )


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Turns what torch and safetensors raise on a full disk into a `StorageError`; what was half-written goes."""
    with storage_errors(folder):
        try:
            yield
        except (OSError, RuntimeError, SafetensorError, StorageError) as error:
            full = shutil.disk_usage(folder.parent).free < 2**20
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, (OSError, StorageError)) or not (
                full or "o space left" in f"{error} {error.__context__}"
            ):
                raise
            raise OSError(errno.ENOSPC, str(error)) from error


def last_checkpoint(folder: Path, fingerprint: str, say: Callable[[str], None]) -> Path | None:
    """Returns the latest whole checkpoint of a run.

    Args:
        folder: Where the run writes.
        fingerprint: What the run is made from.
        say: Gets a line for every half-written checkpoint that is passed over.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rsplit("-", 1)[1]))
    for checkpoint in found:
        if is_complete(checkpoint, fingerprint):
            return checkpoint
        say(f"{checkpoint} is half-written: passed over")
    return None


def curve(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Returns `step`, `epoch`, `loss`, `learning_rate` and `grad_norm` of every logged step."""
    keys = ("step", "epoch", "loss", "learning_rate", "grad_norm")
    return [{key: entry[key] for key in keys if key in entry} for entry in history if "loss" in entry]
