"""Workloads that need what mock devices lack, in the scheme of scenarios.py and with its command line.

They run with hardware.cpp preloaded, with which programs have binaries, traces can be captured and
replayed, and sub-device managers loaded.
"""

import ctypes
import os
import sys

sys.dont_write_bytecode = True

import ttnn

import scenarios
from scenarios import (
    COLUMNS, DRAM, HEIGHT, L1, ROWS, close_mesh, main, meshes, open_mesh, sharded, tensor,
)  # fmt: skip

# ttnn's decorators look for torch tensors in a capture, and torch isn't needed here.
ttnn.decorators.get_all_tensors = lambda *_: []
graph = ttnn._ttnn.graph
# Tensors that are never dropped.
kept = []


class Runtime:
    """The runtime's own functions, where Python's interface has none."""

    def __init__(self):
        self.library = ctypes.CDLL("libtt_metal.so", mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
        self.program = ctypes.CDLL(None)

    def call(self, name, result, *arguments):
        """Calls a function as a C++ program would, whose calls a preloaded library gets."""
        try:
            function = getattr(self.program, name)
        except AttributeError:
            function = getattr(self.library, name)
        function.restype = result
        return function(*arguments)

    def mesh(self, mesh):
        """The address of a mesh's C++ object."""
        # nanobind's objects begin with Python's head of two words and the offset to what they hold.
        offset = ctypes.c_int32.from_address(id(mesh) + 16).value
        address = ctypes.c_void_p.from_address(id(mesh) + offset)
        name = "_ZNK2tt8tt_metal11distributed10MeshDevice2idEv"
        assert self.call(name, ctypes.c_int, address) == mesh.id()
        return address

    def allocator(self, mesh):
        """The address of a mesh's allocator."""
        name = "_ZNK2tt8tt_metal11distributed10MeshDevice14allocator_implEv"
        owner = self.call(name, ctypes.c_void_p, self.mesh(mesh))
        return ctypes.c_void_p.from_address(owner)

    def state(self, mesh):
        """The state of a mesh's allocator: what is taken."""
        state = (ctypes.c_uint64 * 64)()
        name = "_ZNK2tt8tt_metal13AllocatorImpl13extract_stateEv"
        self.call(name, None, ctypes.byref(state), self.allocator(mesh))
        return state

    def take_over(self, mesh, state):
        """Has a mesh's allocator forget its own state for this one."""
        name = "_ZN2tt8tt_metal13AllocatorImpl14override_stateERKNS0_14AllocatorStateE"
        self.call(name, None, self.allocator(mesh), ctypes.byref(state))

    def chips(self, mesh):
        """The addresses of the chips' own allocators, by chip."""
        devices = (ctypes.c_void_p * 3)()
        name = "_ZNK2tt8tt_metal11distributed10MeshDevice11get_devicesEv"
        self.call(name, None, ctypes.byref(devices), self.mesh(mesh))
        name = "_ZNK2tt8tt_metal6Device14allocator_implEv"
        owners = [
            self.call(name, ctypes.c_void_p, ctypes.c_void_p.from_address(at))
            for at in range(devices[0], devices[1], ctypes.sizeof(ctypes.c_void_p))
        ]
        chips = [ctypes.c_void_p.from_address(owner) for owner in owners]
        return dict(zip(mesh.get_device_ids(), chips))


runtime = Runtime()


def ops(a, b, shards):
    """An op of each kind: with circular buffers of its own, and with ones in its tensors' memory."""
    memory = shards.memory_config()
    return [
        ttnn.add(a, b),
        ttnn.matmul(a, b),
        ttnn.softmax(a, dim=-1),
        ttnn.layer_norm(a),
        ttnn.add(shards, shards, memory_config=memory),
        ttnn.relu(shards),
    ]


def inputs(mesh):
    shards = sharded(HEIGHT, ttnn.BufferType.L1, 8, [32, 64])
    return tensor(mesh, 256, 256), tensor(mesh, 256, 256, L1), tensor(mesh, 256, 64, shards)


def binaries(mesh):
    """How many programs' binaries the runtime keeps: buffers at the end of DRAM."""
    buffers = scenarios.books()["buffers"]
    return sum(buffer["address"] > 900_000_000 for buffer in buffers)


def programs():
    """Programs' binaries: made once, kept in the cache, gone with it."""
    mesh = open_mesh()
    given = inputs(mesh)
    assert binaries(mesh) == 0
    held = ops(*given)
    assert binaries(mesh) == 6, binaries(mesh)
    yield "first runs"
    held += ops(*given) + ops(*given)
    assert binaries(mesh) == 6, binaries(mesh)
    yield "cached"
    del held[3:]
    yield "dropped"
    mesh.clear_program_cache()
    assert binaries(mesh) == 0, binaries(mesh)
    yield "cache cleared"
    held += ops(*given)
    yield "again"
    mesh.disable_and_clear_program_cache()
    held += ops(*given)
    assert binaries(mesh) == 0, binaries(mesh)
    yield "without a cache"
    mesh.enable_program_cache()
    held += ops(*given)
    yield "with a cache again"


def leaks():
    """Closing with everything left, and doing the same again."""
    mesh = open_mesh(trace_region_size=1 << 20, l1_small_size=32768)
    for turn in range(2):
        given = inputs(mesh)
        held = ops(*given)
        trace = ttnn.begin_trace_capture(mesh, cq_id=0)
        held += ops(*given)
        ttnn.end_trace_capture(mesh, trace, cq_id=0)
        grid = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(1, 1))})
        held.append(ttnn.create_global_semaphore(mesh, grid, 0))
        yield "open"
        close_mesh(mesh)
        yield "closed"
        if turn == 0:
            mesh = open_mesh(trace_region_size=1 << 20)
            yield "open again"
            held.clear()
            del given
            yield "what was left is dropped"


def traces():
    """Traces that are captured, replayed and released."""
    mesh = open_mesh(trace_region_size=1 << 20)
    given = inputs(mesh)
    held = ops(*given)

    def capture():
        trace = ttnn.begin_trace_capture(mesh, cq_id=0)
        held.extend(ops(*given))
        ttnn.end_trace_capture(mesh, trace, cq_id=0)
        return trace

    first = capture()
    yield "captured"
    ttnn.execute_trace(mesh, first, cq_id=0, blocking=False)
    ttnn.execute_trace(mesh, first, cq_id=0, blocking=False)
    yield "replayed"
    second = capture()
    assert ttnn.get_memory_view(mesh, ttnn.BufferType.TRACE).total_bytes_allocated_per_bank > 0
    yield "two"
    ttnn.release_trace(mesh, first)
    yield "one released"
    ttnn.execute_trace(mesh, second, cq_id=0, blocking=False)
    ttnn.release_trace(mesh, second)
    assert ttnn.get_memory_view(mesh, ttnn.BufferType.TRACE).total_bytes_allocated_per_bank == 0
    yield "both released"
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    try:
        # From some release on, what isn't cached can't be captured.
        held.append(ttnn.multiply(given[0], given[1]))
    except RuntimeError:
        pass
    yield "a new program in a capture"


def sub_devices():
    """Sub-device managers, which take L1 from everybody else while they are loaded."""
    mesh = open_mesh()
    held = [*inputs(mesh)]

    def cores(first, last):
        corner = ttnn.CoreCoord(last, 3)
        return ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(first, 0), corner)})

    def left():
        return ttnn.get_memory_view(mesh, ttnn.BufferType.L1).total_bytes_per_bank

    whole = left()
    one = mesh.create_sub_device_manager([ttnn.SubDevice([cores(0, 3)])], 65536)
    two = [ttnn.SubDevice([cores(0, 1)]), ttnn.SubDevice([cores(2, 3)])]
    two = mesh.create_sub_device_manager(two, 16384)
    yield "created"
    mesh.load_sub_device_manager(one)
    assert left() == whole - 65536, left()
    yield "loaded"
    held += [tensor(mesh, 64, 64, L1), tensor(mesh, 64, 64)]
    ttnn.deallocate(held[1])
    yield "in use"
    mesh.load_sub_device_manager(two)
    assert left() == whole - 16384, left()
    yield "another loaded"
    ttnn.deallocate(held[-1])
    mesh.clear_loaded_sub_device_manager()
    assert left() == whole, left()
    yield "cleared"
    held.append(tensor(mesh, 64, 64, L1))
    mesh.remove_sub_device_manager(one)
    yield "one removed"
    mesh.load_sub_device_manager(two)
    close_mesh(mesh)
    yield "closed while one is loaded"
    mesh = open_mesh()
    held.append(tensor(mesh, 64, 64, L1))
    yield "open again"


def captures():
    """Graph captures: what is captured is either run too, or only planned."""
    mesh = open_mesh()
    given = inputs(mesh)
    held = ops(*given)
    graph.begin_graph_capture(graph.RunMode.NORMAL)
    held += ops(*given)
    held.append(ttnn.multiply(given[0], given[1]))
    yield "a capture that runs"
    graph.end_graph_capture()
    graph.begin_graph_capture(graph.RunMode.NO_DISPATCH)
    plans = ops(*given)
    plans.append(ttnn.subtract(given[0], given[1]))
    yield "a capture that only plans"
    del plans[1]
    yield "a plan dropped"
    del plans
    graph.end_graph_capture()
    held += ops(*given)
    yield "after"
    graph.begin_graph_capture(graph.RunMode.NORMAL)
    held.append(ttnn.subtract(given[0], given[1]))
    graph.begin_graph_capture(graph.RunMode.NO_DISPATCH)
    plans = ops(*given)
    graph.end_graph_capture()
    held += ops(*given)
    yield "planning within a capture that runs"
    del plans
    graph.end_graph_capture()
    yield "both ended"
    graph.begin_graph_capture(graph.RunMode.NO_DISPATCH)
    ttnn.deallocate(held[0])
    graph.end_graph_capture()
    # The runtime keeps the memory, and a dead pointer in its list of buffers.
    scenarios.has_list = False
    yield "freed while only planning"
    held.append(tensor(mesh, 256, 256))
    yield "the object's place used again"


def l1_small():
    """What lies in L1_SMALL: tensors, and the tables of pooling ops, which stay in the cache."""
    mesh = open_mesh(l1_small_size=32768)
    held = [tensor(mesh, 64, 32, sharded(HEIGHT, ttnn.BufferType.L1_SMALL, 2, [32, 32]))]
    grid = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(3, 3))})
    kind = ttnn.BufferType.L1_SMALL
    held.append(ttnn.create_global_semaphore(mesh, grid, 0, kind))
    yield "a tensor and a semaphore"
    image = ttnn.empty([1, 1, 32 * 32, 64], ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT, mesh, DRAM)

    def pool():
        return ttnn.max_pool2d(
            input_tensor=image, batch_size=1, input_h=32, input_w=32, channels=64,
            kernel_size=[2, 2], stride=[2, 2], padding=[0, 0], dilation=[1, 1],
        )  # fmt: skip

    before = ttnn.get_memory_view(mesh, kind).total_bytes_allocated_per_bank
    held.append(pool())
    assert ttnn.get_memory_view(mesh, kind).total_bytes_allocated_per_bank > before
    yield "pooled"
    held.append(pool())
    yield "pooled again"
    del held[0:2]
    yield "tensor and semaphore dropped"
    mesh.clear_program_cache()
    yield "cache cleared"


def families():
    """A parent and its submeshes, which run programs of their own."""
    mesh = open_mesh()
    held = [*inputs(mesh)]
    shape = ttnn.MeshShape(ROWS, COLUMNS if ROWS * COLUMNS == 1 else COLUMNS // 2)
    parts = mesh.create_submeshes(shape) + mesh.create_submeshes(shape)
    meshes.extend(parts)
    held += [ops(*inputs(part)) for part in parts]
    held.append(tensor(mesh, 64, 64, L1))
    yield "all in use"
    parts[0].clear_program_cache()
    yield "one cache cleared"
    close_mesh(parts[-1])
    yield "one closed"
    held += ops(*held[:3])
    yield "the parent ran too"
    for one in [parts[0], mesh]:
        try:
            ttnn.close_mesh_device(one)
            raise AssertionError("closed while the other's queue is in use")
        except RuntimeError as error:
            assert "is in use by" in str(error), error
    yield "closes that failed"
    held += [tensor(mesh, 64, 64, L1), *inputs(parts[0])]
    yield "went on"


def no_events():
    """Ends without an event of their own, or half-way."""
    mesh = open_mesh()
    given = inputs(mesh)
    held = ops(*given)
    empty = [tensor(mesh, 0, 64), tensor(mesh, 0, 64, L1)]
    yield "empty tensors"
    ttnn.deallocate(empty[0])
    del empty
    yield "empty tensors gone"
    if ROWS * COLUMNS > 1:
        mesh.reshape(ttnn.MeshShape(1, ROWS * COLUMNS))
    held.append(tensor(mesh, 96, 96))
    yield "reshaped"
    # Fills L1 but for a corner, so that programs clash with it.
    free = ttnn.get_memory_view(mesh, ttnn.BufferType.L1).largest_contiguous_bytes_free_per_bank
    rows = (free - 4096) // 64 // 32 * 32
    held.append(tensor(mesh, rows, 32, sharded(HEIGHT, ttnn.BufferType.L1, 1, [rows, 32])))
    for op in [ttnn.add, ttnn.matmul, ttnn.multiply, ttnn.subtract]:
        try:
            held.append(op(given[0], given[0]))
            raise AssertionError("no clash")
        except RuntimeError as error:
            assert "clash" in str(error), error
    yield "clashed"
    try:
        held.append(ttnn.concat([given[0]] * 4, dim=0, memory_config=L1))
        raise AssertionError("no failure")
    except RuntimeError:
        pass
    yield "no room for an output"
    held.pop()
    held += [ttnn.multiply(given[0], given[0])]
    yield "went on"
    ttnn._ttnn.device.deallocate_buffers(mesh)
    # They are still in its list.
    scenarios.has_list = False
    yield "all freed at once"
    held.append(tensor(mesh, 64, 64))
    yield "a new one"
    del held[:-1]
    del given
    yield "the old ones dropped"
    del held[:]
    yield "the new one dropped"


def states():
    """Allocators that take over another's state, or an earlier one of their own."""
    mesh = open_mesh()
    held = [tensor(mesh, 512, 512), tensor(mesh, 256, 256), tensor(mesh, 64, 64, L1)]
    early = runtime.state(mesh)
    ttnn.deallocate(held[1])
    held.append(tensor(mesh, 1024, 1024))
    yield "went on"
    runtime.take_over(mesh, early)
    # The list of buffers knows nothing of it.
    scenarios.has_list = False
    yield "as before"
    held.append(tensor(mesh, 96, 96))
    held.append(tensor(mesh, 96, 96, L1))
    yield "new ones"
    ttnn.deallocate(held[-1])
    yield "a new one freed"
    shape = ttnn.MeshShape(ROWS, COLUMNS if ROWS * COLUMNS == 1 else COLUMNS // 2)
    part = mesh.create_submeshes(shape)[-1]
    meshes.append(part)
    held.append(tensor(part, 64, 64))
    runtime.take_over(part, runtime.state(mesh))
    yield "a submesh like its parent"
    held.append(tensor(part, 64, 64))
    yield "its own beside it"
    close_mesh(part)
    yield "closed"
    held[0] = tensor(mesh, 32, 32)
    yield "an old one dropped"


def per_core():
    """Tensors whose memory is taken from each core by itself, by the chips' own allocators."""
    mesh = open_mesh()

    def memory(cores, row, alone):
        corners = ttnn.CoreCoord(0, row), ttnn.CoreCoord(cores - 1, row)
        grid = ttnn.CoreRangeSet({ttnn.CoreRange(*corners)})
        spec = ttnn.ShardSpec(grid, [32, 64], ttnn.ShardOrientation.ROW_MAJOR)
        memory = ttnn.MemoryConfig(HEIGHT, ttnn.BufferType.L1, spec)
        memory.experimental_set_per_core_allocation(alone)
        return memory

    scenarios.more_books = lambda: {"per_core": per_core_books(mesh)}
    held = [tensor(mesh, 256, 64, memory(8, 0, True)), tensor(mesh, 256, 64, memory(8, 1, True))]
    yield "on different cores"
    held.append(tensor(mesh, 128, 64, memory(4, 0, True)))
    held += [tensor(mesh, 256, 64, memory(8, 0, False)), tensor(mesh, 64, 64, L1)]
    yield "among others"
    ttnn.deallocate(held[0])
    ttnn.deallocate(held[3])
    yield "freed"
    del held
    yield "all gone"
    # The runtime crashes when such a tensor is dropped after its mesh was closed.
    kept.append(tensor(mesh, 256, 64, memory(8, 0, True)))
    close_mesh(mesh)
    scenarios.more_books = dict
    yield "closed with one left"
    mesh = open_mesh()
    scenarios.more_books = lambda: {"per_core": per_core_books(mesh)}
    held = [tensor(mesh, 256, 64, memory(8, 0, True))]
    yield "open again"
    del held
    yield "dropped again"


def per_core_books(mesh):
    """Per chip: how many buffers its own allocator has, and their bytes in all banks together."""
    books = {}
    for chip, allocator in runtime.chips(mesh).items():
        name = "_ZNK2tt8tt_metal13AllocatorImpl25get_num_allocated_buffersEv"
        buffers = runtime.call(name, ctypes.c_size_t, allocator)
        banks = ttnn.get_memory_view(mesh, ttnn.BufferType.L1).num_banks
        total = 0
        # Number 0 is what all banks share: there the chip's allocator repeats the mesh's buffers.
        for bank in range(1, banks + 1):
            ranges = (ctypes.c_uint64 * 3)()
            name = (
                "_ZNK2tt8tt_metal13AllocatorImpl23get_l1_allocated_rangesE"
                "N4ttsl10StrongTypeIjNS0_14AllocatorIDTagEEE"
            )
            runtime.call(name, None, ctypes.byref(ranges), allocator, ctypes.c_uint32(bank))
            for at in range(ranges[0], ranges[1], 16):
                start, end = (ctypes.c_uint64 * 2).from_address(at)
                total += end - start
        books[str(chip)] = {"buffers": buffers, "bytes": total}
    return books


if __name__ == "__main__":
    main([
        programs, leaks, traces, sub_devices, captures, l1_small, families, no_events, states,
        per_core,
    ])  # fmt: skip
