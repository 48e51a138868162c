"""The two kinds of array that public functions take: on a device, or numpy's on the host."""

import numpy as np
from jaxtyping import Array

AnyArray = Array | np.ndarray
