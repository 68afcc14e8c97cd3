"""A small ttnn program: tensors in DRAM and L1 of every chip, an op, and some of it freed."""

import sys

import ttnn

rows, columns = int(sys.argv[1]), int(sys.argv[2])
device = ttnn.open_mesh_device(ttnn.MeshShape(rows, columns))


def tensor(height, width, memory):
    return ttnn.empty([height, width], ttnn.bfloat16, ttnn.TILE_LAYOUT, device, memory)


weights = [tensor(2048, 2048, ttnn.DRAM_MEMORY_CONFIG) for _ in range(4)]
activations = tensor(1024, 2048, ttnn.L1_MEMORY_CONFIG)
for weight in weights:
    product = ttnn.matmul(activations, weight, memory_config=ttnn.L1_MEMORY_CONFIG)
    ttnn.deallocate(activations)
    activations = ttnn.add(product, product, memory_config=ttnn.L1_MEMORY_CONFIG)
    ttnn.deallocate(product)
ttnn.deallocate(weights.pop())

print(f"ran on {rows * columns} chip(s), {len(weights)} weights are still held")
ttnn.close_mesh_device(device)
