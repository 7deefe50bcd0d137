"""How a process of a launched group begins and ends: no compiling, no chatter, one rank that speaks at an error."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from llava_ohd.errors import LlavaOhdError, StageFailed

__all__ = ["has_gpu", "is_first", "leave", "prepare_deepspeed", "quiet", "said_once"]

_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "timed out")
"""What torch says of a connection to another rank that is gone."""


@contextmanager
def said_once() -> Iterator[None]:
    """Lets the rank that has something to say say it, before the launcher ends the others.

    An error that all ranks meet is left to rank 0; a connection that broke is the fault of the rank that went, which
    has no word left where it was killed.
    """
    try:
        yield
    except LlavaOhdError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(10)
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _BROKEN):
            raise
        time.sleep(5)
        raise StageFailed(
            "another rank stopped: it says why, unless it was killed (for memory?). The same command goes on from the "
            "last checkpoint"
        ) from error


def is_first() -> bool:
    """Says whether this is the only process, or the one of a launched group that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def has_gpu() -> bool:
    """Says whether to use a GPU; not where `DS_ACCELERATOR=cpu` asks for none. It must come before torch is used."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # DeepSpeed's launcher numbers CPU ranks in this variable
    import torch

    return torch.cuda.is_available()


def prepare_deepspeed(cuda: bool) -> None:
    """Keeps DeepSpeed from compiling its shared-memory operation on a CPU, where gloo does without.

    It must come before anything that starts the process group.
    """
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        return
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def quiet() -> None:
    """Leaves out what libraries say on every rank about their own future and about optional parts."""
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    for module in ("torch.distributed", "transformers", "peft"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)


def leave() -> None:
    """Ends a process of a launched group whose work is done.

    All ranks leave together, and without the interpreter's own shutdown: a rank whose threads of gloo still run then
    dies with "terminate called without an active exception", and the launcher takes the finished run for a failed one.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    if wandb := sys.modules.get("wandb"):
        wandb.finish()  # or else at the interpreter's shutdown
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
