"""Workloads that stop at checkpoints, where the runtime's own books are printed.

    scenarios.py ROWS COLUMNS all [SCENARIO…]  every scenario, or these, up to each of its checkpoints,
                                               each in a forked process of its own
    scenarios.py ROWS COLUMNS SCENARIO NUMBER  one scenario up to one checkpoint, in this process

Every line on standard output is a JSON object: what the runtime says at the checkpoint, per chip and
type, and where its buffers are. The process that printed it ends there with os._exit.

A scenario is a generator that yields at its checkpoints.
"""

import json
import os
import random
import sys
import threading

import ttnn

ROWS, COLUMNS = int(sys.argv[1]), int(sys.argv[2])
TYPES = {
    "DRAM": ttnn.BufferType.DRAM,
    "L1": ttnn.BufferType.L1,
    "L1_SMALL": ttnn.BufferType.L1_SMALL,
    "TRACE": ttnn.BufferType.TRACE,
}
NAMES = {value: name for name, value in TYPES.items()}
DRAM, L1 = ttnn.DRAM_MEMORY_CONFIG, ttnn.L1_MEMORY_CONFIG

# The meshes that are open, parents before submeshes: what a checkpoint looks at.
meshes = []
# Whether the runtime's list of buffers can be read and is right.
has_list = True
# What else there is to print at a checkpoint.
more_books = dict


def open_mesh(**options):
    mesh = ttnn.open_mesh_device(ttnn.MeshShape(ROWS, COLUMNS), **options)
    meshes.append(mesh)
    return mesh


def close_mesh(mesh):
    meshes.remove(mesh)
    ttnn.close_mesh_device(mesh)


def tensor(mesh, height, width, memory=DRAM, layout=ttnn.TILE_LAYOUT):
    return ttnn.empty([height, width], ttnn.bfloat16, layout, mesh, memory)


def sharded(kind, buffer_type, cores, shard):
    """A memory configuration with one shard on each of `cores` x 1 cores (or DRAM banks)."""
    grid = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(cores - 1, 0))})
    spec = ttnn.ShardSpec(grid, shard, ttnn.ShardOrientation.ROW_MAJOR)
    return ttnn.MemoryConfig(kind, buffer_type, spec)


HEIGHT = ttnn.TensorMemoryLayout.HEIGHT_SHARDED
WIDTH = ttnn.TensorMemoryLayout.WIDTH_SHARDED


def books():
    """What the runtime says: per chip and type the bytes in each bank that are taken and that there are,
    and every buffer's place."""
    memory, capacity, buffers = {}, {}, []
    for mesh in meshes:
        chips = list(mesh.get_device_ids())
        for name, kind in TYPES.items():
            view = ttnn.get_memory_view(mesh, kind)
            for chip in chips:
                of_type = memory.setdefault(str(chip), {})
                of_type[name] = of_type.get(name, 0) + view.total_bytes_allocated_per_bank
                sizes = capacity.setdefault(str(chip), {}).setdefault(name, set())
                sizes.add(view.total_bytes_per_bank)
        if not has_list:
            continue
        for buffer in ttnn._ttnn.reports.get_buffers([mesh] if WANTS_LIST else mesh):
            place = {"chips": chips, "type": NAMES[buffer.buffer_type], "address": buffer.address}
            buffers.append(place)
    # Where a mesh and a submesh disagree, there is no one size.
    for chip, types in capacity.items():
        capacity[chip] = {name: max(sizes) for name, sizes in types.items() if len(sizes) == 1}
    buffers = buffers if has_list else None
    return {"memory": memory, "capacity": capacity, "buffers": buffers, **more_books()}


def wants_list():
    """Whether get_buffers takes a list of devices, as it does from some release on."""
    return "Sequence" in (ttnn._ttnn.reports.get_buffers.__doc__ or "") or "list" in (
        ttnn._ttnn.reports.get_buffers.__doc__ or "").split("->")[0]


WANTS_LIST = wants_list()


def interleaved():
    """Interleaved tensors of both memories; freeing while Python holds the tensor."""
    mesh = open_mesh()
    yield "open"
    held = [tensor(mesh, 1024, 1024) for _ in range(4)] + [tensor(mesh, 256, 256, L1)]
    yield "allocated"
    ttnn.deallocate(held[1])
    ttnn.deallocate(held[4])
    yield "freed, still held"
    ttnn.deallocate(held[1])
    held.append(tensor(mesh, 32, 32, layout=ttnn.ROW_MAJOR_LAYOUT))
    held.append(tensor(mesh, 1, 7, L1, layout=ttnn.ROW_MAJOR_LAYOUT))
    yield "freed twice, small ones added"
    del held[0]
    yield "dropped"


def shards():
    """Sharded tensors: the memory is reserved in every bank, wherever the shards are."""
    mesh = open_mesh(l1_small_size=32768)
    held = [
        tensor(mesh, 256, 64, sharded(HEIGHT, ttnn.BufferType.L1, 8, [32, 64])),
        tensor(mesh, 32, 512, sharded(WIDTH, ttnn.BufferType.L1, 4, [32, 128])),
        tensor(mesh, 1024, 512, sharded(HEIGHT, ttnn.BufferType.L1, 1, [1024, 512])),
    ]
    yield "L1"
    held.append(tensor(mesh, 128, 64, sharded(HEIGHT, ttnn.BufferType.DRAM, 4, [32, 64])))
    held.append(tensor(mesh, 64, 32, sharded(HEIGHT, ttnn.BufferType.L1_SMALL, 2, [32, 32])))
    yield "DRAM and L1_SMALL"
    grid = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(3, 3))})
    held += [ttnn.create_global_semaphore(mesh, grid, 0) for _ in range(3)]
    yield "semaphores"
    del held[2:5]
    yield "dropped"


def aliases():
    """Views, reshapes, in-place moves and copies."""
    mesh = open_mesh()
    source = tensor(mesh, 512, 512)
    reshaped = ttnn.reshape(source, [256, 1024])
    unsqueezed = ttnn.unsqueeze(source, 0)
    yield "views"
    part = ttnn.slice(source, [0, 0], [256, 512])
    yield "slice"
    in_l1 = ttnn.to_memory_config(source, L1)
    hole = tensor(mesh, 512, 512, L1)
    last = tensor(mesh, 256, 256, L1)
    ttnn.deallocate(hole)
    last = ttnn.reallocate(last)
    yield "reallocated"
    first = tensor(mesh, 512, 512)
    again = tensor(mesh, 512, 512)
    ttnn.deallocate(first)
    again = ttnn.move(again)
    yield "moved"
    ttnn.deallocate(unsqueezed)
    del reshaped
    yield "freed by an alias"
    del source, part, in_l1, last, again
    yield "all dropped"


def ops():
    """Ops that build programs, then run them from the cache."""
    mesh = open_mesh()
    a, b = tensor(mesh, 512, 512), tensor(mesh, 512, 512, L1)
    yield "inputs"
    total = ttnn.add(a, b)
    product = ttnn.matmul(a, b, memory_config=L1)
    yield "first run"
    results = [ttnn.add(a, b) for _ in range(5)] + [ttnn.softmax(product, dim=-1)]
    yield "cached"
    del total, results[1:4]
    ttnn.deallocate(product)
    yield "dropped"
    mesh.disable_and_clear_program_cache()
    yield "cache cleared"


def failures():
    """Allocations that fail and are caught; the program goes on."""
    mesh = open_mesh()
    held = [tensor(mesh, 1024, 1024), tensor(mesh, 256, 256, L1)]
    failed = 0
    for height, memory in [(1 << 20, DRAM), (1 << 15, L1)] * 2:
        try:
            held.append(tensor(mesh, height, 1 << 14, memory))
        except RuntimeError:
            failed += 1
    assert failed == 4, failed
    yield "caught"
    held.append(tensor(mesh, 1024, 1024))
    ttnn.deallocate(held[0])
    yield "went on"


def reopening():
    """Closing with tensors left, and opening again: ids, pointers and addresses come back."""
    mesh = open_mesh()
    left = [tensor(mesh, 512, 512), tensor(mesh, 64, 64, L1), tensor(mesh, 512, 512)]
    yield "before"
    close_mesh(mesh)
    yield "closed with tensors left"
    mesh = open_mesh(l1_small_size=16384)
    yield "opened again"
    again = [tensor(mesh, 512, 512), tensor(mesh, 64, 64, L1)]
    yield "same addresses"
    del left
    yield "old tensors dropped"
    ttnn.deallocate(again[0])
    close_mesh(mesh)
    mesh = open_mesh()
    last = tensor(mesh, 128, 128)
    yield "third time"
    del last


def submeshes():
    """Submeshes beside their parent: three allocators over the same chips."""
    mesh = open_mesh()
    held = [tensor(mesh, 256, 256)]
    if ROWS * COLUMNS == 1:
        parts = mesh.create_submeshes(ttnn.MeshShape(1, 1))
    else:
        parts = mesh.create_submeshes(ttnn.MeshShape(ROWS, COLUMNS // 2))
    meshes.extend(parts)
    yield "made"
    held += [tensor(part, 512, 512) for part in parts]
    held += [tensor(part, 64, 64, L1) for part in parts]
    held.append(tensor(mesh, 256, 256, L1))
    yield "all allocate"
    ttnn.deallocate(held[1])
    yield "one freed"
    close_mesh(parts[-1])
    yield "a submesh closed with tensors left"


def threads():
    """Two threads that allocate at once, and free what the other made."""
    mesh = open_mesh()
    queues = [[], []]

    def work(own, other, seed):
        choose = random.Random(seed)
        for _ in range(400):
            size = 32 * choose.randint(1, 16)
            own.append(tensor(mesh, size, size, choose.choice([DRAM, L1])))
            if len(other) > 3 and choose.random() < 0.8:
                try:
                    ttnn.deallocate(other.pop(0))
                except IndexError:
                    pass
        # What is left is what the checkpoint sees.

    workers = [
        threading.Thread(target=work, args=(queues[0], queues[1], 1)),
        threading.Thread(target=work, args=(queues[1], queues[0], 2)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    yield "joined"
    for queue in queues:
        del queue[::2]
    yield "half dropped"


def mixed():
    """A seeded random mix of some thousand steps."""
    mesh = open_mesh(l1_small_size=32768)
    choose = random.Random(20_260_122)
    held = []
    for step in range(3000):
        action = choose.random()
        if action < 0.5 or len(held) < 4:
            memory = choose.choice([DRAM, DRAM, L1])
            height, width = (32 * choose.randint(1, 24) for _ in range(2))
            layout = choose.choice([ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT])
            try:
                held.append(tensor(mesh, height, width, memory, layout))
            except RuntimeError:
                del held[::2]
        elif action < 0.6:
            cores = choose.choice([1, 2, 4, 8])
            memory = sharded(HEIGHT, ttnn.BufferType.L1, cores, [32, 64])
            held.append(tensor(mesh, 32 * cores, 64, memory))
        elif action < 0.75:
            ttnn.deallocate(choose.choice(held))
        elif action < 0.8:
            at = choose.randrange(len(held))
            if held[at].is_allocated():
                held[at] = ttnn.reallocate(held[at])
        else:
            held.pop(choose.randrange(len(held)))
        if len(held) > 150:
            del held[:50]
        if step % 500 == 499:
            yield f"step {step + 1}"


def planned():
    """A graph capture that dispatches nothing: its buffers are planned, not allocated."""
    mesh = open_mesh()
    held = [tensor(mesh, 256, 256)]
    graph = ttnn._ttnn.graph
    # ttnn's decorators look for torch tensors in a capture, and torch isn't needed here.
    ttnn.decorators.get_all_tensors = lambda *_: []
    graph.begin_graph_capture(graph.RunMode.NO_DISPATCH)
    plans = [tensor(mesh, 1 << 14, 1 << 10) for _ in range(3)]
    yield "planned"
    del plans
    graph.end_graph_capture()
    held.append(tensor(mesh, 512, 512))
    yield "after"


SCENARIOS = [
    interleaved, shards, aliases, ops, failures, reopening, submeshes, threads, mixed, planned,
]  # fmt: skip


def run_to(scenario, number):
    """Runs a scenario to a checkpoint, prints the books and ends; returns if it has fewer."""
    for at, name in enumerate(scenario()):
        if at == number:
            line = {"scenario": scenario.__name__, "checkpoint": name, "pid": os.getpid(), **books()}
            os.write(1, (json.dumps(line) + "\n").encode())
            os._exit(0)


def run_forked(scenario, number):
    """The same in a child of its own; whether there was such a checkpoint."""
    child = os.fork()
    if child == 0:
        try:
            run_to(scenario, number)
            os._exit(3)
        except BaseException as error:
            os.write(2, f"{scenario.__name__} {number}: {error!r}\n".encode())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 3):
        sys.exit(f"{scenario.__name__}, checkpoint {number}, ended with {code}")
    return code == 0


def main(scenarios):
    """Does what the command line asks for, with one of these scenarios or all of them."""
    names = {scenario.__name__: scenario for scenario in scenarios}
    if sys.argv[3] == "all":
        for scenario in [names[name] for name in sys.argv[4:]] or scenarios:
            number = 0
            while run_forked(scenario, number):
                number += 1
    else:
        run_to(names[sys.argv[3]], int(sys.argv[4]))
        sys.exit("there is no such checkpoint")


if __name__ == "__main__":
    main(SCENARIOS)
