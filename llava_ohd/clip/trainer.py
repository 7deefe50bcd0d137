"""HF's Trainer for the fine-grained loss: checkpoints that are whole or not used, a curve, a clamped scale.

A run that is killed at any moment and started again continues from its last whole checkpoint with the losses that it
would have had: weights, optimiser, schedule, data order and random states are all in the checkpoint.
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils import checkpoint as recomputing
from transformers import CLIPModel, PrinterCallback, TrainerCallback, TrainingArguments

from llava_ohd.clip.batching import RowOrder
from llava_ohd.clip.captions import Captions, encode_captions
from llava_ohd.clip.embedding import encode_images
from llava_ohd.clip.loss import LossConfig, clip_loss
from llava_ohd.clip.parameters import group_rates
from llava_ohd.errors import StageFailed
from llava_ohd.files import is_complete, mark_complete, storage_errors
from llava_ohd.progress import Progress
from llava_ohd.training.epochs import Epochs
from llava_ohd.training.exact_steps import ExactSteps

__all__ = ["MAX_LOGIT_SCALE", "FineTuner", "OhdObjective", "curve", "last_checkpoint", "remove_checkpoints"]

MAX_LOGIT_SCALE = math.log(100)
"""Largest logit_scale: Radford et al. 2021, section 2.5. Unclamped, margins in logits are met by a larger scale."""


class OhdObjective(nn.Module):
    """A CLIP together with its loss: from a batch of `OhdData.collate` to the loss and its parts.

    Args:
        model: The CLIP to train.
        config: The loss.
        chunk_size: Images that are in memory at a time, for gradient caching; None: all.
        bf16: Whether the towers run in bfloat16 autocast.
    """

    def __init__(self, model: CLIPModel, config: LossConfig, chunk_size: int | None = None, bf16: bool = False) -> None:
        super().__init__()
        self.clip, self._config, self._chunk_size, self._bf16 = model, config, chunk_size, bf16

    def forward(
        self,
        pixel_values: Tensor,
        captions: Captions | list[Captions],
        caption: Tensor,
        negative: Tensor,
        valid: Tensor,
    ) -> dict[str, Tensor]:
        """Returns the scalars `loss`, `contrastive`, `margin1` and `margin2`; arguments as `OhdData.collate` says."""
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=self._bf16):
            texts_UD, images_BD = self._encode(captions, pixel_values)
        # `F.embedding` gathers as indexing does, but its backward adds in a fixed order, whatever the threads do
        parts = clip_loss(
            images_BD,
            F.embedding(caption, texts_UD),
            F.embedding(negative, texts_UD),
            valid,
            self.clip.logit_scale,
            self._config,
        )
        return {
            "loss": parts.total,
            "contrastive": parts.contrastive.detach(),
            "margin1": parts.margin1.detach(),
            "margin2": parts.margin2.detach(),
        }

    def _encode(self, captions: Captions | list[Captions], pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes captions and images, chunk by chunk where a batch comes in chunks.

        A chunk keeps nothing but its embeddings and is computed anew when its gradient is due, one chunk at a time:
        the gradients are those of the whole batch, the memory is that of a chunk (GradCache, arXiv 2101.06983).
        """
        if self._chunk_size is None:
            assert isinstance(captions, dict)
            return encode_captions(self.clip, captions), encode_images(self.clip, pixel_values)
        again = partial(recomputing.checkpoint, use_reentrant=False, preserve_rng_state=False)  # CLIP draws nothing
        texts = [again(encode_captions, self.clip, chunk) for chunk in captions]
        images = [again(encode_images, self.clip, chunk) for chunk in pixel_values.split(self._chunk_size)]
        return torch.cat(texts), torch.cat(images)


class FineTuner(ExactSteps):
    """Trainer with our log, our selection and checkpoints that carry a mark when they are whole.

    Args:
        model: What to train.
        args: HF's arguments; `logging_steps` must be 1.
        fingerprint: What the run is made from; a checkpoint of another run is not taken up.
        select: Returns the accuracy on dev of the model as it stands, or None to take the last step.
        rates: Learning rates of `vision`, `text` and `other`; None: `args.learning_rate` for all.
        layer_decay: A weight's rate is multiplied by this for every layer above it.
        **others: As for `Trainer`.
    """

    def __init__(
        self,
        model: OhdObjective,
        args: TrainingArguments,
        fingerprint: str,
        select: Callable[[CLIPModel], float] | None = None,
        rates: dict[str, float] | None = None,
        layer_decay: float = 1.0,
        **others: Any,
    ) -> None:
        if args.n_gpu > 1:
            args._n_gpu = 1  # several GPUs in one process would tear the index tensors of a batch apart
        super().__init__(model=model, args=args, **others)
        self._objective, self._fingerprint, self._select = model, fingerprint, select
        self._rates = rates or dict.fromkeys(("vision", "text", "other"), args.learning_rate)
        self._layer_decay = layer_decay
        self._parts: dict[str, list[Tensor]] = defaultdict(list)  # of the batches since the last entry of the log
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(self))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Returns the optimiser, with the learning rates of towers and layers."""
        if self.optimizer is None:
            clip = self._objective.clip
            decayed, decay = set(self.get_decay_parameter_names(clip)), self.args.weight_decay
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, clip)
            self.optimizer = kind(group_rates(clip, decayed, decay, self._rates, self._layer_decay), **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
        order = RowOrder(len(cast(Sized, train_dataset or self.train_dataset)), self.args.seed)
        self.add_callback(Epochs(order))
        return order

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns the loss and remembers its parts for the log."""
        parts = model(**inputs)
        for name in parts.keys() - {"loss"}:
            self._parts[name].append(parts[name])
        return parts["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss and the scale to the log.

        Raises:
            StageFailed: the loss is not finite.
        """
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise StageFailed(
                    f"the loss is {logs['loss']} at step {self.state.global_step}; give a lower --learning_rate or "
                    f"more --warmup_steps, and remove {self.args.output_dir} or give another --out"
                )
            for name in sorted(self._parts):  # of gradient accumulation the mean, as `loss` is
                logs[name] = self.accelerator.reduce(torch.stack(self._parts.pop(name)).mean(), "mean").item()
            logs["scale"] = math.exp(self._objective.clip.logit_scale.item())
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the dev accuracy, by which the best checkpoint is chosen (not by a loss, which rests on batches)."""
        assert self._select is not None
        self._objective.eval()
        metrics = {"eval_accuracy": self._select(self._objective.clip)}
        self._objective.train()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the matrices: neither gains and biases, as usual, nor logit_scale are decayed."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with storage_errors(folder):
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process writes a part
                if self.args.should_save:
                    mark_complete(folder, self._fingerprint)
            except (OSError, RuntimeError, SafetensorError):
                shutil.rmtree(folder, ignore_errors=True)
                raise


class _Watch(TrainerCallback):
    """After every step: clamps the scale and reports progress."""

    def __init__(self, trainer: FineTuner) -> None:
        self._trainer, self._scale = trainer, trainer._objective.clip.logit_scale
        self._progress: Progress | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            if self._trainer.is_deepspeed_enabled and self._scale.requires_grad:
                from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

                # ZeRO steps on a copy of its own
                master = safe_get_full_fp32_param(self._scale)
                safe_set_full_fp32_param(self._scale, master.clamp(max=MAX_LOGIT_SCALE))
            self._scale.clamp_(max=MAX_LOGIT_SCALE)
        if state.is_world_process_zero:
            self._progress = self._progress or Progress("fine-tuning the encoder", state.max_steps)
            self._progress.update(state.global_step)


def last_checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """Returns the latest whole checkpoint of the run, and removes every other that is half-written or of another run.

    Args:
        folder: Where the run writes.
        fingerprint: What the run is made from.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if is_complete(checkpoint, fingerprint):
            whole.append(checkpoint)
        else:
            print(f"{checkpoint} is half-written, or of a run with other settings: removed", flush=True)
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(whole, key=lambda checkpoint: int(checkpoint.name.split("-")[1]), default=None)


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints of a run."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


def curve(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Returns one row per step from the Trainer's log, dev accuracy merged into the row of its step."""
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        if "loss" in entry or "eval_accuracy" in entry:
            rows.setdefault(int(entry["step"]), {"step": entry["step"]}).update(entry)
    return [rows[step] for step in sorted(rows)]
