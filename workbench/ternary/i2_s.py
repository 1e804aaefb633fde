"""bitnet.cpp's block type I2_S of GGUF files, as its builds for x86 read it.

Its builds for ARM have another order of inputs under the same number, and llama.cpp itself does not
know it. A matrix has one float32 scale, which multiplies, behind all of its rows. It is read in
:mod:`workbench.gguf_reader`.
"""

from __future__ import annotations

import numpy as np

TYPE, FILE_TYPE = 36, 40
"""Numbers in a GGUF file: of the type, and of a file whose matrices are of it."""
RUN = 128
"""Inputs that 32 bytes hold; a row is a whole number of them."""
TAIL = 32
"""Bytes behind the rows; the first four are the scale."""


def pack_i2_s(codes: np.ndarray, scale: float) -> np.ndarray:
    """uint8 [N, K] codes, w + 1, -> uint8 [N * K / 4 + 32]: byte k of a run of 128 inputs holds the
    inputs k, k + 32, k + 64 and k + 96, the first in its highest bits."""
    runs = codes.reshape(-1, 4, 32)
    rows = runs[:, 0] << 6 | runs[:, 1] << 4 | runs[:, 2] << 2 | runs[:, 3]
    tail = np.zeros(TAIL, np.uint8)
    tail[:4] = np.array([scale], "<f4").view(np.uint8)
    return np.concatenate([rows.reshape(-1), tail])
