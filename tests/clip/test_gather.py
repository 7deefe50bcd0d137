"""Two processes with b images each have the loss and the gradients of one process with 2 · b, whatever the switches.

Mask `inf`: where empty slots count, they count in every process as many as its own batch has.
"""

import itertools
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from llava_ohd.clip.loss import LossConfig, clip_loss

SWITCHES = {"mode": ("paper", "released"), "mask": ("inf",), "neg_scope": ("own", "all"), "axis": ("texts", "images")}


def configs() -> list[LossConfig]:
    values = itertools.product(*SWITCHES.values())
    return [LossConfig(**dict(zip(SWITCHES, row, strict=True))) for row in values]  # type: ignore[arg-type]


def batch() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Rows of 6 images with 5 slots; the first three have no more than 3 negatives."""
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(2, 6, 8, generator=generator)
    negatives = torch.randn(6, 5, 8, generator=generator) + captions[:, None]
    valid = torch.rand(6, 5, generator=generator) > 0.3
    valid[:3, 3:] = False
    return [images, captions, negatives, torch.tensor(2.0)], valid


def gradients(config: LossConfig, rows: slice, slots: int) -> list[torch.Tensor]:
    tensors, valid = batch()
    cut = [tensors[0][rows], tensors[1][rows], tensors[2][rows, :slots], tensors[3]]
    leaves = [tensor.clone().requires_grad_() for tensor in cut]
    parts = clip_loss(*leaves[:3], valid[rows, :slots], leaves[3], config)
    parts.total.backward()
    found = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [torch.stack([parts.total, parts.contrastive, parts.margin1, parts.margin2]).detach(), *found]


def one_of_two(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    own = slice(3 * rank, 3 * rank + 3)
    found: list[Any] = [gradients(config, own, (3, 5)[rank]) for config in configs()]
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[torch.Tensor]]]:
    """What each of two processes has, for each config."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    ranks = [context.Process(target=one_of_two, args=(rank, port, folder)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
        assert rank.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize(("number", "config"), list(enumerate(configs())), ids=str)
def test_two_processes_are_one(number: int, config: LossConfig, two: list[list[list[torch.Tensor]]]) -> None:
    whole = gradients(config, slice(0, 6), 5)
    first, second = two[0][number], two[1][number]
    torch.testing.assert_close((first[0] + second[0]) / 2, whole[0])
    for mine, yours, expected in zip(first[1:3], second[1:3], whole[1:3], strict=True):
        torch.testing.assert_close(torch.cat([mine, yours]) / 2, expected)  # a trainer averages over processes
    torch.testing.assert_close(torch.nn.functional.pad(first[3], (0, 0, 0, 2)) / 2, whole[3][:3])
    torch.testing.assert_close(second[3] / 2, whole[3][3:])
    torch.testing.assert_close((first[4] + second[4]) / 2, whole[4])
