"""Workloads that end in every way a program can, with live tensors.

    endings.py ROWS COLUMNS CASE

Every line on standard output is a JSON object: what the runtime says at a checkpoint, as in scenarios.py.
It is what the report has to say of the process that printed it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys

sys.dont_write_bytecode = True

import ttnn

import scenarios
from scenarios import L1, TYPES, open_mesh, tensor

CASE = sys.argv[3]


def checkpoint(books=None):
    line = {"scenario": CASE, "checkpoint": "last", "pid": os.getpid(), **(books or scenarios.books())}
    os.write(1, (json.dumps(line) + "\n").encode())


def allocate(mesh):
    held = [tensor(mesh, 512, 512), tensor(mesh, 1024, 1024), tensor(mesh, 64, 64, L1)]
    ttnn.deallocate(tensor(mesh, 256, 256))
    del held[0]
    return held


def keep(tensors):
    """What nobody drops, not even the interpreter when it ends."""
    for one in tensors:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def view(mesh):
    return {name: ttnn.get_memory_view(mesh, kind).total_bytes_allocated_per_bank
            for name, kind in TYPES.items()}  # fmt: skip


def own_books(mesh, inherited):
    """The runtime's books without what the process was forked with and still has."""
    books = scenarios.books()
    for types in books["memory"].values():
        for name in types:
            types[name] -= inherited[name]
    return {**books, "buffers": None}


def forked(mesh, held):
    """A child that allocates, and frees what it made and what it inherited."""
    inherited = view(mesh)
    child = os.fork()
    if child == 0:
        own = [tensor(mesh, 128, 128), tensor(mesh, 256, 512), tensor(mesh, 64, 64, L1)]
        before = view(mesh)
        ttnn.deallocate(held[0])
        after = view(mesh)
        for name in TYPES:
            inherited[name] -= before[name] - after[name]
        ttnn.deallocate(own[0])
        checkpoint(own_books(mesh, inherited))
        os._exit(0)
    os.waitpid(child, 0)
    ttnn.deallocate(held[0])


def two_processes():
    """Two that have a device each at the same time."""
    words = [sys.executable, __file__, *sys.argv[1:3]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = [subprocess.Popen([*words, case], **pipes) for case in ("first", "second")]
    # Each has printed its line before either may end.
    for line in [child.stdout.readline() for child in children]:
        os.write(1, line)
    for child in children:
        child.communicate()
    os._exit(0)


def main():
    if CASE == "two":
        two_processes()
    mesh = open_mesh()
    held = allocate(mesh)
    if CASE == "second":
        held.append(tensor(mesh, 2048, 1024))
    if CASE == "forked":
        forked(mesh, held)
    if CASE == "child_exits":
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    checkpoint()
    match CASE:
        case "exit":
            keep(held)
            sys.exit(4)
        case "exception":
            keep(held)
            raise ValueError("nobody handles this")
        case "return":
            keep(held)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "aborted":
            os.abort()
        case "first" | "second":
            sys.stdin.read()
            os._exit(0)
        case _:
            os._exit(5)


main()
