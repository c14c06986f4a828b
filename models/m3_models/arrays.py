"""The two array types that cross module boundaries here."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
"""float32, any shape; the docstring of each function states it."""

ByteArray: TypeAlias = NDArray[np.uint8]
"""Raw bytes, one-dimensional."""
