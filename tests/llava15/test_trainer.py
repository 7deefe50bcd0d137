"""The order of rows, the choice of a checkpoint, a full disk."""

import errno
from pathlib import Path

import pytest

from llava_ohd.errors import StorageError
from llava_ohd.files import mark_complete
from llava_ohd.llava15.trainer import RowOrder, _saving, curve, last_checkpoint

LENGTHS = [(3 + 7 * i % 50) * (-1 if i % 4 == 0 else 1) for i in range(101)]


def test_every_row_once_and_batches_of_one_modality() -> None:
    order = list(RowOrder(LENGTHS, batch=4, ranks=2, seed=0, pool=1))
    assert sorted(order) == list(range(101))
    whole = [order[start : start + 8] for start in range(0, 96, 8)]
    kinds = [{LENGTHS[i] > 0 for i in rows} for rows in whole]
    assert sum(len(kind) == 1 for kind in kinds) >= 11  # rows of either kind that fill no batch come last


def test_ranks_get_like_lengths() -> None:
    order = list(RowOrder([1, 2, 3, 4, 5, 6, 7, 8], batch=4, ranks=2, seed=0, pool=1))
    assert sorted([sum(i + 1 for i in order[:4]), sum(i + 1 for i in order[4:])]) == [18, 18]


def test_a_pool_leaves_little_padding() -> None:
    def padding(pool: int) -> int:
        order = list(RowOrder(LENGTHS, batch=4, ranks=1, seed=0, pool=pool))
        assert sorted(order) == list(range(101))
        batches = [[abs(LENGTHS[i]) for i in order[start : start + 4]] for start in range(0, 96, 4)]
        return sum(4 * max(batch) - sum(batch) for batch in batches)

    assert padding(pool=50) < 0.3 * padding(pool=1)


@pytest.mark.parametrize("pool", [0, 1, 50])
def test_the_order_depends_on_seed_and_epoch(pool: int) -> None:
    sampler = RowOrder(LENGTHS, 4, 2, seed=0, pool=pool)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(RowOrder(LENGTHS, 4, 2, seed=1, pool=pool)) != first
    assert sorted(first) == list(range(101))


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    said: list[str] = []
    for step in (2, 4, 10, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * 100)
        if step != 12:
            mark_complete(folder, "run")
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"x" * 99)
    assert last_checkpoint(tmp_path, "run", said.append) == tmp_path / "checkpoint-4"
    assert len(said) == 2
    assert last_checkpoint(tmp_path, "another run", said.append) is None


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] . No space left on device"),
        StorageError("the disk is full"),
    ):
        folder.mkdir()
        with pytest.raises(StorageError, match="disk is full"), _saving(folder):
            raise error
        assert not folder.exists()
    with pytest.raises(RuntimeError, match="something else"), _saving(folder):
        raise RuntimeError("something else")


def test_the_curve_has_one_row_per_logged_step() -> None:
    history = [{"loss": 2.0, "learning_rate": 0.1, "epoch": 0.5, "step": 1}, {"train_runtime": 3.0, "step": 1}]
    assert curve(history) == [{"step": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 0.1}]
