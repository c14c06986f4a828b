"""The word embedding in int8: a scale for every 32 values.

One scale for a row is not enough for the special tokens: in e5-small the row of </s> has an element 46 times its mean,
and </s> is in every text.
"""

import numpy as np

GROUPS = (32, 16, 8, 4, 2, 1)


def widest_group(width: int) -> int:
    """The largest group that divides the width.

    >>> widest_group(1024), widest_group(12)
    (32, 4)
    """
    return next(group for group in GROUPS if width % group == 0)


def quantize_groups(table: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, H) float → (V, H/group, group) int8 and (V, H/group, 1) float16 scales with table ≈ values * scales.

    Scales are rounded up to float16 first and values then fitted to them, so the rounding costs next to nothing.
    """
    grouped = table.reshape(len(table), -1, group)
    exact = np.abs(grouped).max(axis=-1, keepdims=True) / 127.0
    smallest = np.finfo(np.float16).smallest_normal
    scales = np.maximum(exact * (1 + 2.0**-10), smallest).astype(np.float16)
    return np.rint(grouped / scales.astype(np.float32)).clip(-127, 127).astype(np.int8), scales
