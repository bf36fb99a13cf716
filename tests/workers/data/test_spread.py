"""Work spread over processes: what goes in comes out, in order, however large it is."""

import os
import signal

import numpy as np
import pytest

from workers.data.lines import LineBlock
from workers.data.spread import AREA_BYTES, spread


def test_batches_of_every_size_come_back_in_order() -> None:
    sizes = [10, AREA_BYTES + 1, 0, 3_000_000, AREA_BYTES * 2, 5]
    blocks = [LineBlock(number, bytes([number]) * size) for number, size in enumerate(sizes)]

    def work(block: LineBlock) -> tuple[LineBlock, "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
        return block, np.arange(len(block.data) // 8)

    found = list(spread(work, iter(blocks), 2))
    assert [block for block, _ in found] == blocks
    assert [len(numbers) for _, numbers in found] == [size // 8 for size in sizes]


def test_results_stay_what_they_were_when_the_memory_is_used_again() -> None:
    found = list(spread(lambda data: data * 2, (bytes([n]) * 100_000 for n in range(9)), 2))
    assert found == [bytes([n]) * 200_000 for n in range(9)]


def test_what_goes_wrong_in_a_helper_is_raised_here() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    found = spread(work, iter(range(9)), 2)
    with pytest.raises(ValueError, match="three"):
        list(found)
    with pytest.raises(MemoryError):
        list(spread(work, iter([1, 9, 2]), 2))
