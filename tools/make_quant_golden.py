#!/usr/bin/env python3
"""Writes tests/data/quant_golden.bin: random blocks of every weight type with the values that PyPI's gguf package gives them.

tests/test_quant.c compares every kernel with it, bit for bit.  To make it again (the result is the same file each time):

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy gguf
    /tmp/venv/bin/python tools/make_quant_golden.py tests/data/quant_golden.bin

The packed bits are random.  The scales are finite: zero, minus zero, negative, subnormal as halves, the largest half, then random ones.
File, little-endian: "QGLD", u32 n_types; for each type u32 type, u32 n_elems, u32 n_bytes, the bytes, the values as f32.
"""
import struct
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Where a block keeps its scales, which are halves.
SCALES_AT = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0], T.IQ4_XS: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
SPECIAL_HALVES = [0x0000, 0x8000, 0xA8F1, 0x0001, 0x83FF, 0x7BFF]
SPECIAL_EXPONENTS = [0, 1, 2, 3, 127, 253, 254, 255]  # MXFP4: one byte, a power of two


def blocks_of(qtype, rng):
    """The bytes of a few blocks, one row a block."""
    n_elems, n_bytes = GGML_QUANT_SIZES[qtype]
    n_blocks = {1: 256, 32: 24, 256: 10}[n_elems]
    blocks = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
    for field, offset in enumerate(SCALES_AT.get(qtype, [])):
        halves = rng.normal(0, 0.05, n_blocks).astype(np.float16).view(np.uint16)
        for i, special in enumerate(SPECIAL_HALVES):
            halves[(i + 2 * field) % n_blocks] = special  # shifted, so that not both scales are zero at once
        blocks[:, offset:offset + 2] = halves.reshape(-1, 1).view(np.uint8)
    if qtype == T.MXFP4:
        blocks[:, 0] = rng.integers(110, 140, n_blocks)
        blocks[:len(SPECIAL_EXPONENTS), 0] = SPECIAL_EXPONENTS
    if qtype == T.F16:
        halves = rng.integers(0, 65536, n_blocks).astype(np.uint16)
        halves[(halves & 0x7C00) == 0x7C00] &= 0xFC00  # infinities stay, a NaN becomes one: its payload is nobody's contract
        halves[:len(SPECIAL_HALVES)] = SPECIAL_HALVES
        blocks = halves.reshape(-1, 1).view(np.uint8)
    return blocks


def main(path):
    rng = np.random.default_rng(1)
    types = [T.F32, T.F16, T.BF16, *SCALES_AT, T.MXFP4]
    out = [b"QGLD", struct.pack("<I", len(types))]
    for qtype in types:
        blocks = blocks_of(qtype, rng)
        with np.errstate(over="ignore"):
            values = dequantize(np.ascontiguousarray(blocks.reshape(1, -1)), qtype).reshape(-1)
        assert values.dtype == np.float32
        if qtype not in (T.F32, T.BF16):
            assert not np.isnan(values).any()
        out += [struct.pack("<III", qtype, values.size, blocks.size), blocks.tobytes(), values.astype("<f4").tobytes()]
    data = b"".join(out)
    with open(path, "wb") as f:
        f.write(data)
    print(f"{path}: {len(types)} types, {len(data)} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
