"""Rows that say almost the same: MinHash signatures of word triples, compared by locality-sensitive hashing.

After Broder (1997) and Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3.
"""

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
FIRST_ROWS = 65_536
PAIRS_A_TIME = 100_000

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
        self._marks: Signatures = np.zeros((0, PERMUTATIONS), dtype=np.uint16)
        """Of the first `rows` rows; beyond them there is room for more."""
        self.rows = 0
        self.complete = True

    def add(self, found: Signatures) -> None:
        """Signatures of the next rows."""
        rows = self.rows + len(found)
        if rows > MAX_ROWS:
            self.complete = False
            self._forget()
        if not self.complete:
            return
        if rows > len(self._marks):  # grown in place: two copies at once would not fit
            room = min(MAX_ROWS, max(rows * 5 // 4, FIRST_ROWS))
            self._marks.resize((room, PERMUTATIONS), refcheck=False)
        self._marks[self.rows : rows] = found
        self.rows = rows

    def roots(self) -> NDArray[np.int64]:
        """For each row the index of the first row of its group; empty when there is nothing to compare.

        The signatures are forgotten.
        """
        parents = np.arange(self.rows)
        for band in range(BANDS if self.rows else 0):
            _join(self._marks[: self.rows], band, parents)
        self._forget()
        return _roots(parents)

    def _forget(self) -> None:
        self._marks, self.rows = np.zeros((0, PERMUTATIONS), dtype=np.uint16), 0


def groups(roots: NDArray[np.int64], numbers: NDArray[np.int64]) -> tuple[int, list[list[int]]]:
    """How many rows are like an earlier one, and the largest groups as row numbers.

    `roots` of `NearDuplicates`; `numbers` of the same rows.
    """
    later = np.flatnonzero(roots != np.arange(len(roots)))
    firsts, sizes = np.unique(roots[later], return_counts=True)
    members = later[np.argsort(roots[later], kind="stable")]
    ends = np.cumsum(sizes)
    shown = []
    for group in np.argsort(-sizes, kind="stable")[:MAX_GROUPS]:
        rest = members[ends[group] - sizes[group] : ends[group]][: MAX_GROUP - 1]
        shown.append([int(numbers[firsts[group]]), *numbers[rest].tolist()])
    return len(later), shown


def _join(matrix: Signatures, band: int, parents: NDArray[np.int64]) -> None:
    """Join rows whose band is equal and whose whole signatures agree with the first such row's."""
    keys = np.ascontiguousarray(matrix[:, band * BAND : (band + 1) * BAND]).view(np.uint64).ravel()
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.append(True, ordered[1:] != ordered[:-1])
    del keys, ordered
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(order)))
    firsts = np.repeat(order[starts], sizes - 1)
    others = order[~new]
    for at in range(0, len(others), PAIRS_A_TIME):
        one, two = firsts[at : at + PAIRS_A_TIME], others[at : at + PAIRS_A_TIME]
        apart = parents[one] != parents[two]  # in a file of one row again and again, hardly any are
        one, two = one[apart], two[apart]
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
