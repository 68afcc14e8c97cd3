"""One of several ranks that mpirun starts: tensors on the chip of the rank's number.

Prints one JSON object: what the runtime says of its memory. Ends without closing anything.
"""

import json
import os

# Without Open MPI's server each rank is a job of its own to tt-metal, which would otherwise want a description
# of the mesh that the hosts form.
for name in [name for name in os.environ if name.startswith("PMIX_")]:
    del os.environ[name]

import ttnn

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
DRAM, L1 = ttnn.DRAM_MEMORY_CONFIG, ttnn.L1_MEMORY_CONFIG

device = ttnn.open_device(device_id=RANK)


def tensor(height, memory):
    return ttnn.empty([height, 1024], ttnn.bfloat16, ttnn.TILE_LAYOUT, device, memory)


kept = [tensor(32 * (RANK + 1), DRAM) for _ in range(RANK + 2)]
kept.append(tensor(64 * (RANK + 1), L1))
tensor(32, L1)
view = {
    name: ttnn.get_memory_view(device, kind).total_bytes_allocated_per_bank
    for name, kind in [("DRAM", ttnn.BufferType.DRAM), ("L1", ttnn.BufferType.L1)]
}
print(json.dumps({"chips": list(device.get_device_ids()), "bytes_per_bank": view}), flush=True)
os._exit(0)
