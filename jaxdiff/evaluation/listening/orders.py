"""In which order a session meets pages and sounds: random, and balanced over the sessions.

A Williams square (Williams 1949, Australian Journal of Scientific Research A2) is a Latin square, so that everything
stands in every place equally often, in which everything also follows everything else equally often. It has `count` rows
for an even count, and for an odd one two squares of them, the second the mirror image of the first. Session n takes the
next row. What the numbers of the square stand for, and which row comes when, is drawn anew for every square.
"""

from collections.abc import Sequence

import numpy as np


def williams_squares(count: int) -> list[np.ndarray]:
    """One Latin square [count, count] of the numbers from 0 for an even count and two for an odd one.

    >>> williams_squares(4)[0].tolist()
    [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]
    """
    first = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    square = (np.array(first)[None] + np.arange(count)[:, None]) % count
    return [square] if count % 2 == 0 or count == 1 else [square, square[:, ::-1]]


def balanced_order(count: int, session: int, seed: Sequence[int]) -> list[int]:
    """The order of the numbers from 0 to `count` - 1 in a session; another `seed` has other orders.

    Within sessions 0 to count - 1, count to 2 count - 1 and so on every number stands in every place once.
    """
    squares = williams_squares(count)
    block, row = divmod(session, count)
    cycle, which = divmod(block, len(squares))
    names = np.random.default_rng([*seed, cycle, 0]).permutation(count)
    rows = np.random.default_rng([*seed, cycle, 1 + which]).permutation(count)
    return [int(names[i]) for i in squares[which][rows[row]]]


def interspersed(others: Sequence[int], checks: Sequence[int], session: int, seed: Sequence[int]) -> list[int]:
    """The `others` in their order with the `checks` among them in any order, another one in each session.

    There is one in each of as many equal parts of the session, never two together, and the first is none. There must be
    no more checks than others.

    >>> interspersed([0, 1, 2, 3, 4, 5], [8, 9], 0, (1,))
    [0, 1, 2, 9, 3, 4, 8, 5]
    """
    rng = np.random.default_rng([*seed, session])
    found = list(others)
    parts = np.array_split(np.arange(1, len(others) + 1), max(1, len(checks)))
    for part, check in zip(reversed(parts), rng.permutation(np.array(checks, int)), strict=False):
        found.insert(int(rng.choice(part)), int(check))
    return found
