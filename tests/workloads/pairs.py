"""Times allocate/free pairs: pairs.py ROWS COLUMNS BLOCKS. Prints the nanoseconds of a pair, block by block."""

import os
import sys
import time

import ttnn

PAIRS = 2000

rows, columns, blocks = (int(word) for word in sys.argv[1:])
mesh = ttnn.open_mesh_device(ttnn.MeshShape(rows, columns))
shape, memory = ttnn.Shape([32, 32]), ttnn.DRAM_MEMORY_CONFIG


def block():
    start = time.perf_counter_ns()
    for _ in range(PAIRS):
        ttnn.deallocate(ttnn.empty(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh, memory))
    return (time.perf_counter_ns() - start) / PAIRS


block()
for _ in range(blocks):
    print(block(), flush=True)
os._exit(0)
