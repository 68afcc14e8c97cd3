"""What the runtime says of the L1 that programs take for themselves.

    programs.py ROWS COLUMNS

Runs some ops, each twice, and prints a JSON object a line on standard output:

    {"op": …, "run": "first", "dispatched": …, "circular_buffers": […]}   and "run": "cached"
        What graph capture reports: of each circular buffer its address, its bytes on each core, its cores,
        its chip (the MeshDevice's id where the runtime tells no chip) and whether it is a view of a
        tensor's memory. Graph capture tells of a program when it is compiled, which is once, and neither
        of dataflow buffers nor of views. `dispatched` is how many programs it saw being run.

    {"op": …, "run": "again", "clash": …, "refused": …}
        The op once more, while a tensor fills L1 almost down to where programs' L1 begins. The runtime then
        refuses to run a program with circular or dataflow buffers of its own, and says in an exception
        where their region ends, on which cores, and where the lowest buffer is: of the cached program,
        whose number it gives. `clash` is null if the op ran, as those do whose circular buffers are all
        views, and if it `refused` by itself, since it plans by what is free.

    {"lowest_buffer": …}
        Last: the lowest address of a tensor in L1.

The process ends with the device open.
"""

import json
import os
import re
import sys

import ttnn

sys.dont_write_bytecode = True

from scenarios import DRAM, HEIGHT, WANTS_LIST, open_mesh, sharded, tensor

# ttnn's decorators look for torch tensors in a capture, and torch isn't needed here.
ttnn.decorators.get_all_tensors = lambda *_: []
graph = ttnn._ttnn.graph

CLASH = re.compile(
    r"Statically allocated (?P<kind>circular|dataflow) buffers in program (?P<program>\d+) clash with L1 "
    r"buffers on core range (?P<cores>\[.*?\])\. L1 buffer allocated at (?P<lowest_buffer>\d+) and static "
    r"(?:circular|dataflow) buffer region ends at (?P<region_end>\d+)"
)


def say(**line):
    os.write(1, (json.dumps(line) + "\n").encode())


def ranges(text):
    """A set of core ranges, as the releases write it: per range the first core's x and y, and the last's."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    return [numbers[at : at + 4] for at in range(0, len(numbers), 4)]


def captured(op):
    graph.begin_graph_capture(graph.RunMode.NORMAL)
    try:
        result = op()
    finally:
        nodes = graph.end_graph_capture()
    found = []
    for node in nodes:
        if node["node_type"] == "circular_buffer_allocate":
            params = node["params"]
            found.append({
                "address": int(params["address"]),
                "bytes": int(params["size"]),
                "cores": ranges(params["core_range_set"]),
                "view": bool(int(params["globally_allocated"])),
                "chip": int(params["device_id"]),
            })  # fmt: skip
    dispatched = sum(node["node_type"] == "circular_buffer_deallocate_all" for node in nodes)
    return result, found, dispatched


def again(op):
    try:
        op()
    except RuntimeError as error:
        found = CLASH.search(str(error))
        if found is None:
            return {"clash": None, "refused": str(error).splitlines()[0]}
        clash = {
            "kind": found["kind"],
            "program": int(found["program"]),
            "cores": ranges(found["cores"]),
            "lowest_buffer": int(found["lowest_buffer"]),
            "region_end": int(found["region_end"]),
        }
        return {"clash": clash, "refused": None}
    return {"clash": None, "refused": None}


def main():
    mesh = open_mesh()
    memory = sharded(HEIGHT, ttnn.BufferType.L1, 8, [32, 64])
    a, b = tensor(mesh, 512, 512), tensor(mesh, 512, 512)
    rows = tensor(mesh, 32 * 33, 64, DRAM, ttnn.ROW_MAJOR_LAYOUT)
    shards = tensor(mesh, 256, 64, memory)
    plan = ttnn.MatmulMultiCoreReuseMultiCastProgramConfig(
        compute_with_storage_grid_size=(8, 8), in0_block_w=2, out_subblock_h=1, out_subblock_w=1,
        per_core_M=2, per_core_N=2, transpose_mcast=False, fused_activation=None,
    )  # fmt: skip
    ops = {
        "add": lambda: ttnn.add(a, b),
        "matmul": lambda: ttnn.matmul(a, b, program_config=plan),
        "softmax": lambda: ttnn.softmax(a, dim=-1),
        "layer_norm": lambda: ttnn.layer_norm(a),
        "tilize": lambda: ttnn.to_layout(rows, ttnn.TILE_LAYOUT),
        "sharded add": lambda: ttnn.add(shards, shards, memory_config=memory),
        "sharded relu": lambda: ttnn.relu(shards),
        # On a mesh, a program for each chip.
        "rand": lambda: ttnn.rand([64, 64], device=mesh),
    }
    held = []
    for name, op in ops.items():
        for run in ["first", "cached"]:
            result, found, dispatched = captured(op)
            held.append(result)
            say(op=name, run=run, dispatched=dispatched, circular_buffers=found)
    # Outputs of the sharded ops lie in L1; there is room for one more of each.
    spare = [tensor(mesh, 256, 64, memory) for _ in range(2)]
    view = ttnn.get_memory_view(mesh, ttnn.BufferType.L1)
    high = (view.largest_contiguous_bytes_free_per_bank - 1024) // 64 // 32 * 32
    held.append(tensor(mesh, high, 32, sharded(HEIGHT, ttnn.BufferType.L1, 1, [high, 32])))
    del spare
    for name, op in ops.items():
        say(op=name, run="again", **again(op))
    lowest = min(
        buffer.address
        for buffer in ttnn._ttnn.reports.get_buffers([mesh] if WANTS_LIST else mesh)
        if buffer.buffer_type == ttnn.BufferType.L1
    )
    say(lowest_buffer=lowest)
    os._exit(0)


if __name__ == "__main__":
    main()
