"""Rows that say almost the same: MinHash signatures of word triples, compared by locality-sensitive hashing.

After Broder (1997) and Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import rensa
from numpy.typing import NDArray

PERMUTATIONS = 64
BANDS, BAND = 16, 4
"""Two rows are compared when one band of their signatures is equal: likely at half in common."""
SIMILAR = 0.8
"""Share of equal hashes from which two rows are called near duplicates. It estimates the share of the word
triples in common, with a standard error of 0.05."""
SEED = 1
MAX_ROWS = 4_000_000
"""128 bytes of memory each."""
MAX_GROUPS, MAX_GROUP = 50, 20

Signatures = NDArray[np.uint16]


def signatures(texts: Sequence[str]) -> Signatures:
    """One row of PERMUTATIONS hashes for each text.

    The same text gives the same row only in processes with the same PYTHONHASHSEED.
    """
    hashes: list[int] = []
    ends = np.empty(len(texts) + 1, dtype=np.uint64)
    ends[0] = 0
    for index, text in enumerate(texts, start=1):
        words = text.lower().split() or [""]
        hashes.extend(map(hash, words))
        ends[index] = len(hashes)
    triples = _triples(np.array(hashes, dtype=np.int64).view(np.uint64), ends)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        triples, ends, num_perm=PERMUTATIONS, seed=SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint16).reshape(len(texts), PERMUTATIONS)


def _triples(words: NDArray[np.uint64], ends: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of every word with the two after it; at the end of a text its last words stand alone."""
    first, second = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
    following, after = np.zeros_like(words), np.zeros_like(words)
    following[:-1], after[:-2] = words[1:], words[2:]
    last = ends[1:].astype(np.int64) - 1
    following[last] = 0
    after[last] = 0
    after[np.maximum(last - 1, 0)] = 0
    return (words * first + following) * second + after


class NearDuplicates:
    """Signatures of a whole file, and the groups among them."""

    def __init__(self) -> None:
        self._pieces: list[Signatures] = []
        self._numbers: list[NDArray[np.int64]] = []
        self.rows = 0
        self.complete = True

    def add(self, numbers: NDArray[np.int64], found: Signatures) -> None:
        """Signatures of the rows of these numbers."""
        if self.rows + len(found) > MAX_ROWS:
            self.complete = False
            self._pieces.clear()
            return
        if self.complete:
            self._pieces.append(found)
            self._numbers.append(numbers)
            self.rows += len(found)

    def roots(self) -> NDArray[np.int64]:
        """For each row the index of the first row of its group; empty when there is nothing to compare."""
        if not self.complete or not self.rows:
            return np.zeros(0, dtype=np.int64)
        matrix = np.concatenate(self._pieces)
        self._pieces.clear()
        parents = np.arange(len(matrix))
        for band in range(BANDS):
            _join(matrix, band, parents)
        return _roots(parents)

    def groups(self, roots: NDArray[np.int64]) -> tuple[int, list[list[int]]]:
        """How many rows are like an earlier one, and the largest groups as row numbers."""
        members: dict[int, list[int]] = defaultdict(list)
        alone = np.flatnonzero(roots != np.arange(len(roots)))
        if not len(alone):
            return 0, []
        numbers = np.concatenate(self._numbers)
        for index in alone.tolist():
            members[int(roots[index])].append(index)
        largest = sorted(members.items(), key=lambda item: -len(item[1]))[:MAX_GROUPS]
        shown = [[int(numbers[i]) for i in [root, *rest][:MAX_GROUP]] for root, rest in largest]
        return len(alone), shown


def _join(matrix: Signatures, band: int, parents: NDArray[np.int64]) -> None:
    """Join rows whose band is equal and whose whole signatures agree with the first such row's."""
    keys = np.ascontiguousarray(matrix[:, band * BAND : (band + 1) * BAND]).view(np.uint64).ravel()
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sizes = np.diff(np.append(starts, len(ordered)))
    many = sizes > 1
    firsts = np.repeat(order[starts[many]], sizes[many] - 1)
    rest = np.delete(np.arange(len(ordered)), starts)
    others = order[rest]
    for at in range(0, len(others), 100_000):
        one, two = firsts[at : at + 100_000], others[at : at + 100_000]
        alike = (matrix[one] == matrix[two]).mean(axis=1) >= SIMILAR
        for left, right in zip(one[alike].tolist(), two[alike].tolist(), strict=True):
            _unite(parents, left, right)


def _unite(parents: NDArray[np.int64], left: int, right: int) -> None:
    left, right = _root(parents, left), _root(parents, right)
    if left != right:
        parents[max(left, right)] = min(left, right)


def _root(parents: NDArray[np.int64], index: int) -> int:
    while (parent := int(parents[index])) != index:
        parents[index] = parents[parent]
        index = parent
    return index


def _roots(parents: NDArray[np.int64]) -> NDArray[np.int64]:
    while not np.array_equal(parents, above := parents[parents]):
        parents = above
    return parents
