"""A workload that closes what it opens, so that the runtime's allocators are asked before they go.

    closing.py ROWS COLUMNS

Prints one JSON object: how many meshes with an allocator that was used were closed, and for each failed
allocation what the runtime says of the memory right after it.
"""

import json
import sys
import threading

import ttnn

ROWS, COLUMNS = int(sys.argv[1]), int(sys.argv[2])
DRAM, L1 = ttnn.DRAM_MEMORY_CONFIG, ttnn.L1_MEMORY_CONFIG
TYPES = {"DRAM": ttnn.BufferType.DRAM, "L1": ttnn.BufferType.L1}

failures = []
closed = 0


def tensor(mesh, height, width, memory=DRAM):
    return ttnn.empty([height, width], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh, memory)


def fail(mesh, kind):
    try:
        tensor(mesh, 1 << 20, 1 << 14, DRAM if kind == "DRAM" else L1)
    except RuntimeError:
        view = ttnn.get_memory_view(mesh, TYPES[kind])
        failures.append({
            "type": kind,
            "free": view.total_bytes_free_per_bank,
            "largest": view.largest_contiguous_bytes_free_per_bank,
        })
    else:
        sys.exit("there was room")


def close(mesh):
    global closed
    ttnn.close_mesh_device(mesh)
    closed += 1


def open_mesh(**options):
    return ttnn.open_mesh_device(ttnn.MeshShape(ROWS, COLUMNS), **options)


# Tensors, holes between them, programs, L1_SMALL; some are left when the mesh closes.
mesh = open_mesh(l1_small_size=32768)
held = [tensor(mesh, 512, 512) for _ in range(6)] + [tensor(mesh, 256, 256, L1) for _ in range(4)]
del held[1], held[3], held[6]
fail(mesh, "DRAM")
fail(mesh, "L1")
a, b = tensor(mesh, 512, 512), tensor(mesh, 512, 512, L1)
held += [ttnn.add(a, b), ttnn.matmul(a, b, memory_config=L1), ttnn.add(a, b)]
grid = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(3, 3))})
semaphores = [ttnn.create_global_semaphore(mesh, grid, 0) for _ in range(3)]
fail(mesh, "DRAM")
# Submeshes, which close before their parent, with tensors left.
shape = (1, 1) if ROWS * COLUMNS == 1 else (ROWS, COLUMNS // 2)
parts = mesh.create_submeshes(ttnn.MeshShape(*shape))
held += [tensor(part, 256, 256) for part in parts] + [tensor(parts[0], 64, 64, L1)]
fail(parts[0], "L1")
for part in parts:
    close(part)
close(mesh)

# Again at the same addresses; buffers die in a capture that dispatches nothing.
mesh = open_mesh()
real = [tensor(mesh, 256, 256), tensor(mesh, 256, 256, L1)]
graph = ttnn._ttnn.graph
ttnn.decorators.get_all_tensors = lambda *_: []
graph.begin_graph_capture(graph.RunMode.NO_DISPATCH)
planned = tensor(mesh, 1 << 14, 1 << 10)
del planned, real[0]
graph.end_graph_capture()
after = tensor(mesh, 128, 128)
fail(mesh, "DRAM")
close(mesh)

# Threads that allocate and fail at once.
mesh = open_mesh()


def work():
    for step in range(200):
        kept = [tensor(mesh, 32 * (1 + step % 7), 64) for _ in range(3)]
        if step % 40 == 0:
            try:
                tensor(mesh, 1 << 20, 1 << 14)
            except RuntimeError:
                pass
        del kept


workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
close(mesh)

# Nothing but an open and a close.
close(open_mesh())

print(json.dumps({"closed": closed, "failures": failures, "in_threads": 10}))
