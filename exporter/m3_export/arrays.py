"""Arrays that cross module boundaries here."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int32]
"""(L,) token ids of a text, both special tokens included."""

Float32Array: TypeAlias = NDArray[np.float32]
