"""Selection: which validation images figures 1 and 4 show, from what was answered to all of them.

Nobody picks: of the images that fit, those of which the model is surest, each of another class as
far as there are classes.
"""

from collections.abc import Iterable

import numpy as np

from drnet_jax.evaluation.table import Table


def smallest_right(right: np.ndarray) -> np.ndarray:
    """The index of the smallest resolution that is right, int [N], of right bool [N, R].

    -1 where being right does not only depend on the size: where one is wrong that is larger than
    one that is right, or all are wrong.
    """
    count = right.sum(axis=1)
    # Resolutions fall, so that the right ones must come first.
    ordered = right.cumprod(axis=1).sum(axis=1) == count
    return np.where(ordered & (count > 0), count - 1, -1)


def surest(candidates: np.ndarray, sureness: np.ndarray, label: np.ndarray, count: int
           ) -> list[int]:
    """So many of the candidates, int [M], surest first and each of another class if possible.

    Args:
        candidates: indices into the rows of a table.
        sureness: float [N].
        label: int [N].
    """
    order = candidates[np.argsort(-sureness[candidates], kind="stable")]
    _, firsts = np.unique(label[order], return_index=True)
    others = np.setdiff1d(np.arange(len(order)), firsts)
    return order[np.concatenate([np.sort(firsts), others])[:count]].tolist()
