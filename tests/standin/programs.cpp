// Programs, traces and what else has memory beside tensors, on four chips in a square.
#include "program.hpp"
#include "programs.hpp"

#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

using namespace tt::tt_metal;
using namespace tt::tt_metal::distributed;
using program::check;

namespace {

constexpr DeviceAddr L1_SMALL = 32768;
constexpr DeviceAddr TRACE_REGION = 1 << 20;
constexpr DeviceAddr PAGE = 2048;

using Mesh = std::shared_ptr<MeshDevice>;

CoreRangeSet cores(std::size_t x, std::size_t y, std::size_t width, std::size_t height) {
    return CoreRangeSet({CoreRange{{x, y}, {x + width - 1, y + height - 1}}});
}

CoreRangeSet two_parts() { return CoreRangeSet({CoreRange{{0, 0}, {7, 0}}, CoreRange{{0, 3}, {4, 3}}}); }

// A program of these kernels, with a circular buffer of so many bytes.
Program make(const std::vector<std::string>& kernels, std::uint32_t bytes,
             const CoreRangeSet& where = cores(0, 0, 8, 8)) {
    Program program;
    for (const std::string& kernel : kernels) {
        program.impl().add_kernel(std::make_shared<Kernel>(kernel), HalProgrammableCoreType::TENSIX);
    }
    if (bytes != 0) {
        program.impl().add_circular_buffer_(std::make_shared<CircularBufferImpl>(where, bytes));
    }
    return program;
}

MeshCoordinateRange whole(const Mesh& mesh) {
    const auto& sizes = mesh->shape().sizes();
    return {MeshCoordinate(0, 0), MeshCoordinate(sizes[0] - 1, sizes[1] - 1)};
}

MeshWorkload on_all(const Mesh& mesh, Program program) {
    MeshWorkload workload;
    workload.add_program(whole(mesh), std::move(program));
    return workload;
}

// Whether the runtime refuses it.
bool is_refused(MeshCommandQueue& queue, MeshWorkload& workload) {
    try {
        EnqueueMeshWorkload(queue, workload, false);
        return false;
    } catch (const std::runtime_error&) {
        return true;
    }
}

std::shared_ptr<Buffer> in_l1(IDevice* device, DeviceAddr pages, std::optional<SubDeviceId> sub_device = {}) {
    return BufferMaker::create(device, pages * PAGE, PAGE, BufferType::L1, {1}, std::nullopt, sub_device);
}

// Layouts: several buffers, other cores, views, and the other kinds; runs with and without a layout that stands.
void layouts(const Mesh& mesh, MeshCommandQueue& queue) {
    Program several = make(
        {"reader_unary_interleaved_start_id", "writer", "compute_that_has_a_long_name", "writer"}, 4096);
    several.impl().add_circular_buffer_(std::make_shared<CircularBufferImpl>(two_parts(), 2048 + 1));
    auto resized = std::make_shared<CircularBufferImpl>(cores(2, 2, 3, 1), 100);
    several.impl().add_circular_buffer_(resized);
    auto tensor = in_l1(mesh.get(), 4);
    several.impl().add_circular_buffer_(std::make_shared<CircularBufferImpl>(cores(0, 0, 4, 4), 8192, tensor.get()));
    MeshWorkload workload = on_all(mesh, std::move(several));
    for (int run = 0; run < 5; ++run) {
        EnqueueMeshWorkload(queue, workload, run % 2 == 0);
    }
    // Another layout takes the place of the former.
    resized->resize(40'000);
    workload.impl().program(0).impl().invalidate_circular_buffer_allocation();
    EnqueueMeshWorkload(queue, workload, false);
    resized->resize(64);
    workload.impl().program(0).impl().invalidate_circular_buffer_allocation();
    EnqueueMeshWorkload(queue, workload, false);
    EnqueueMeshWorkload(queue, workload, false);

    Program nothing = make({"no buffers"}, 0);
    MeshWorkload empty = on_all(mesh, std::move(nothing));
    EnqueueMeshWorkload(queue, empty, false);
#if ERA > 1
    Program others = make({"matmul"}, 1024, cores(0, 0, 2, 2));
    others.impl().add_dataflow_buffer(two_parts(), 5000);
    others.impl().add_dataflow_buffer(cores(0, 0, 8, 1), 320);
    others.impl().add_scratchpad(two_parts(), 777);
    MeshWorkload mixed = on_all(mesh, std::move(others));
    EnqueueMeshWorkload(queue, mixed, false);
    EnqueueMeshWorkload(queue, mixed, false);
#endif
}

// Programs that differ by chip, and one that only some chips have.
void parts(const Mesh& mesh, MeshCommandQueue& queue) {
    MeshWorkload rows;
    rows.add_program({{0, 0}, {0, 1}}, make({"rows"}, 3000));
    rows.add_program({{1, 0}, {1, 1}}, make({"rows"}, 7000));
    MeshWorkload corner;
    corner.add_program({{1, 0}, {1, 0}}, make({"corner"}, 9000, cores(1, 1, 1, 1)));
    MeshWorkload each;
    for (std::uint32_t chip = 0; chip < 4; ++chip) {
        each.add_program({{chip / 2, chip % 2}, {chip / 2, chip % 2}}, make({"each " + std::to_string(chip)}, 512));
    }
    for (int run = 0; run < 3; ++run) {
        EnqueueMeshWorkload(queue, rows, false);
        EnqueueMeshWorkload(queue, corner, false);
        EnqueueMeshWorkload(queue, each, false);
    }
    // Chips change places.
    mesh->reshape(MeshShape({1, 4}));
    MeshWorkload end;
    end.add_program({{0, 3}, {0, 3}}, make({"last of the row"}, 6000));
    end.add_program({{0, 1}, {0, 2}}, make({"middle of the row"}, 5000));
    EnqueueMeshWorkload(queue, end, false);
    MeshWorkload all = on_all(mesh, make({"row"}, 100));
    EnqueueMeshWorkload(queue, all, false);
    mesh->reshape(MeshShape({2, 2}));
    MeshWorkload square;
    square.add_program({{1, 0}, {1, 0}}, make({"corner again"}, 600));
    EnqueueMeshWorkload(queue, square, false);
}

// A region that meets a buffer, and one that no core has room for.
void clashes(const Mesh& mesh, MeshCommandQueue& queue) {
    MeshWorkload large = on_all(mesh, make({"large"}, 600'000));
    EnqueueMeshWorkload(queue, large, false);
    auto low = in_l1(mesh.get(), 300);
    MeshWorkload more;
    more.add_program({{0, 0}, {0, 1}}, make({"more"}, 700'000));
    more.add_program({{1, 0}, {1, 1}}, make({"less"}, 64));
    for (int attempt = 0; attempt < 3; ++attempt) {
        check(is_refused(queue, large), "a clash is refused");
        check(is_refused(queue, more), "a clash of one program is refused");
    }
    MeshWorkload fits = on_all(mesh, make({"fits"}, 300'000));
    EnqueueMeshWorkload(queue, fits, false);
    low.reset();
    EnqueueMeshWorkload(queue, large, false);
    EnqueueMeshWorkload(queue, more, false);
    MeshWorkload huge = on_all(mesh, make({"huge"}, 1'500'000));
    check(is_refused(queue, huge), "a region that is too large is refused");
}

// Objects that come back, and hundreds of programs that are the same.
void many(const Mesh& mesh, MeshCommandQueue& queue) {
    std::set<const void*> objects;
    for (std::uint32_t round = 0; round < 4; ++round) {
        MeshWorkload workload = on_all(mesh, make({"kernel " + std::to_string(round)}, 1000 * (round + 1)));
        objects.insert(&workload.impl().program(0).impl());
        EnqueueMeshWorkload(queue, workload, false);
    }
    check(objects.size() < 4, "objects come back");
    std::vector<MeshWorkload> same;
    for (int at = 0; at < 400; ++at) {
        MeshWorkload workload = on_all(mesh, make({"the same kernel", "another"}, 1234));
        EnqueueMeshWorkload(queue, workload, false);
        if (at % 10 == 3) {
            EnqueueMeshWorkload(queue, workload, false);
            same.push_back(std::move(workload));
        }
    }
    same.erase(same.begin() + 5, same.end());
    // These outlive the books.
    new auto(std::move(same));
}

// Threads that make, dispatch and end programs, each with kernels of its own.
void threads(const Mesh& mesh) {
    std::vector<std::thread> threads;
    for (std::uint32_t thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&, thread] {
            MeshCommandQueue queue(mesh);
            std::vector<MeshWorkload> kept;
            for (std::uint32_t round = 0; round < 60; ++round) {
                std::string kernel = "thread " + std::to_string(thread);
                MeshWorkload workload;
                workload.add_program({{0, 0}, {0, 1}}, make({kernel, "upper"}, 64 * (1 + round % 3)));
                workload.add_program({{1, thread % 2}, {1, 1}}, make({kernel, "lower"}, 32 + thread * 32));
                for (std::uint32_t run = 0; run <= round % 4; ++run) {
                    EnqueueMeshWorkload(queue, workload, false);
                }
                if (round % 20 == 7) {
                    kept.push_back(std::move(workload));
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

// Captures dispatch nothing, replays do, also when the programs have ended.
void traces(const Mesh& mesh, MeshCommandQueue& queue) {
    MeshWorkload never_alone = on_all(mesh, make({"only in a trace"}, 2222));
    MeshTraceId first{7};
    MeshTraceId second{8};
    {
        MeshWorkload ends;
        ends.add_program({{0, 1}, {1, 1}}, make({"ends before its replay"}, 3333));
        EnqueueMeshWorkload(queue, ends, false);
        mesh->begin_mesh_trace(0, first);
        for (int run = 0; run < 4; ++run) {
            EnqueueMeshWorkload(queue, never_alone, false);
        }
        EnqueueMeshWorkload(queue, ends, false);
        mesh->end_mesh_trace(0, first);
    }
#if ERA == 3
    mesh->begin_mesh_trace(queue, second);
    EnqueueMeshWorkload(queue, never_alone, false);
    mesh->end_mesh_trace(queue, second);
    mesh->replay_mesh_trace(queue, second, true);
#else
    mesh->begin_mesh_trace(0, second);
    EnqueueMeshWorkload(queue, never_alone, false);
    mesh->end_mesh_trace(0, second);
    mesh->replay_mesh_trace(0, second, true);
#endif
    for (int replay = 0; replay < 6; ++replay) {
        mesh->replay_mesh_trace(0, first, false);
    }
    mesh->release_mesh_trace(first);
    // Its id comes back, and is not released.
    mesh->begin_mesh_trace(0, first);
    EnqueueMeshWorkload(queue, never_alone, false);
    EnqueueMeshWorkload(queue, never_alone, false);
    mesh->end_mesh_trace(0, first);
    mesh->replay_mesh_trace(0, first, false);
#ifndef FIRST_RELEASE
    // The runtime chooses these ids.
    MeshTraceId chosen = mesh->begin_mesh_trace(0);
    EnqueueMeshWorkload(queue, never_alone, false);
    mesh->end_mesh_trace(0, chosen);
    mesh->replay_mesh_trace(0, chosen, false);
#if ERA == 3
    MeshTraceId another = mesh->begin_mesh_trace(queue);
#else
    MeshTraceId another = mesh->begin_mesh_trace(0);
#endif
    EnqueueMeshWorkload(queue, never_alone, false);
    EnqueueMeshWorkload(queue, never_alone, false);
    mesh->end_mesh_trace(0, another);
    mesh->release_mesh_trace(chosen);
    mesh->replay_mesh_trace(0, another, false);
    check(chosen.value != another.value, "every trace has an id of its own");
#endif
}

// Graph captures without dispatch.
void plans(const Mesh& mesh) {
    auto tensor = [&](BufferType type, DeviceAddr pages) {
        return MeshBuffer::create(mesh, pages * PAGE, PAGE, type);
    };
    auto real = tensor(BufferType::DRAM, 30);
    standin::plan(true);
    auto dropped = tensor(BufferType::DRAM, 100);
    auto kept = tensor(BufferType::L1, 65);
    dropped.reset();
    auto second = tensor(BufferType::DRAM, 50);
    standin::plan(false);
    auto in_between = tensor(BufferType::DRAM, 70);
    second.reset();
    standin::plan(true);
    second = tensor(BufferType::DRAM, 1);
    standin::plan(false);
    kept.reset();
    // What dies with its mesh, and after it.
    auto other = MeshDevice::create({5}, L1_SMALL, TRACE_REGION);
    standin::plan(true);
    auto late = MeshBuffer::create(other, 3 * PAGE, PAGE, BufferType::DRAM);
    auto early = MeshBuffer::create(other, 4 * PAGE, PAGE, BufferType::DRAM);
    standin::plan(false);
    early.reset();
    other->close();
    late.reset();
}

// Other allocators over the same chips, and one that takes another's ranges over.
void allocators(const Mesh& mesh) {
    auto of_mesh = MeshBuffer::create(mesh, 300 * PAGE, PAGE, BufferType::DRAM);
    auto in_l1_of_mesh = in_l1(mesh.get(), 3);
    auto submesh = MeshDevice::create({2, 3}, L1_SMALL, TRACE_REGION);
    auto over = MeshBuffer::create(submesh, 100 * PAGE, PAGE, BufferType::DRAM);
    auto more = MeshBuffer::create(submesh, 500 * PAGE, PAGE, BufferType::DRAM);
    auto same = in_l1(submesh.get(), 1);
    auto under = MeshBuffer::create(mesh, 700 * PAGE, PAGE, BufferType::DRAM);
    MeshCommandQueue queue(submesh);
    MeshWorkload workload = on_all(submesh, make({"on a part"}, 1500));
    EnqueueMeshWorkload(queue, workload, false);

#ifndef FIRST_RELEASE
    submesh->memory().override_state(mesh->memory().extract_state());
#endif
    auto beside = MeshBuffer::create(submesh, 40 * PAGE, PAGE, BufferType::DRAM);
    // Their memory is the parent's now, if it was overridden: theirs is what lies there.
    over.reset();
    more.reset();
    same.reset();
    EnqueueMeshWorkload(queue, workload, false);
    submesh->memory().deallocate_buffers();
    // Its memory is gone.
    standin::capture(true);
    beside.reset();
    standin::capture(false);
}

// Sub-devices take the lowest L1 for themselves.
void sub_devices(const Mesh& mesh, MeshCommandQueue& queue) {
    auto global = in_l1(mesh.get(), 2);
    auto large = mesh->create_sub_device_manager(2, 400'000 / 32 * 32);
    auto small = mesh->create_sub_device_manager(1, 64 * 1024);
    mesh->load_sub_device_manager(small);
    {
        auto local = in_l1(mesh.get(), 5, SubDeviceId{0});
        MeshWorkload workload = on_all(mesh, make({"below a sub-device's"}, 10'000));
        EnqueueMeshWorkload(queue, workload, false);
        MeshWorkload clash = on_all(mesh, make({"into a sub-device's"}, 60'000));
        check(is_refused(queue, clash), "a clash with a sub-device's buffer is refused");
    }
    mesh->load_sub_device_manager(large);
    {
        auto first = in_l1(mesh.get(), 1, SubDeviceId{0});
        auto second = in_l1(mesh.get(), 2, SubDeviceId{1});
        global.reset();
        auto another = in_l1(mesh.get(), 3);
        standin::plan(true);
        BufferMaker::create(mesh.get(), 900 * PAGE, PAGE, BufferType::DRAM);
        standin::plan(false);
    }
    mesh->clear_loaded_sub_device_manager();
}

void global_objects(const Mesh& mesh) {
    auto rectangle = cores(0, 0, 8, 8);
#if ERA == 3
    MeshDevice& device = *mesh;
    GlobalSemaphore made = CreateGlobalSemaphore(device, rectangle, 1);
#else
    IDevice* device = mesh.get();
#endif
    {
        GlobalSemaphore semaphore(device, rectangle, 0);
        GlobalSemaphore small(device, rectangle, 0, BufferType::L1_SMALL);
    }
    static GlobalSemaphore kept(device, rectangle, 3);
#if ERA < 3
    GlobalSemaphore of_temporary(device, cores(0, 0, 8, 8), 0);
#endif
#if ERA > 1
    GlobalSemaphore third = experimental::CreateGlobalSemaphore(device, rectangle, 3, BufferType::L1, 0);
#endif
    experimental::GlobalCircularBuffer::Mapping mapping = {{{0, 0}, rectangle}};
    static experimental::GlobalCircularBuffer circular(device, mapping, 20'000);
#if ERA == 3
    auto created = experimental::CreateGlobalCircularBuffer(device, mapping, 3000, BufferType::L1);
#endif
#if ERA > 1
    auto prefetched = experimental::CreateGlobalCircularBufferForTensorPrefetcher(
        *mesh, {{3, rectangle}}, 5000, BufferType::L1, false);
#endif
    auto data = in_l1(mesh.get(), 1);
}

// Single chips: programs without a queue, and buffers that have an address of their own on each core.
void single_chips(Device* device) {
    // The first that is wanted of this chip's memory.
    standin::plan(true);
    auto planned = BufferMaker::create(device, 100 * PAGE, PAGE, BufferType::L1);
    standin::plan(false);
    Program program = make({"launched"}, 4444);
    launch(device, program);
    launch(device, program);
    auto buffer = BufferMaker::create(device, 10 * PAGE, PAGE, BufferType::L1, {10});
    auto manager = device->create_sub_device_manager(1, 4096);
    device->load_sub_device_manager(manager);
    device->clear_loaded_sub_device_manager();
    Program large = make({"launched and refused"}, 1'100'000);
    try {
        launch(device, large);
        check(false, "a clash is refused");
    } catch (const std::runtime_error&) {
    }
#if ERA > 1
    auto first = BufferMaker::create(device, 6 * PAGE, PAGE, BufferType::L1, {6, true, 0});
    auto gone = BufferMaker::create(device, 2 * PAGE, PAGE, BufferType::L1, {2, true, 6});
    check(first->address() == gone->address(), "two buffers have one address on different cores");
    auto third = BufferMaker::create(device, 9 * PAGE, PAGE, BufferType::L1, {3, true, 1});
    gone.reset();
    launch(device, program);
    new auto(first);
    new auto(third);
#endif
}

} // namespace

int main() {
    auto mesh = MeshDevice::create({0, 1, 2, 3}, L1_SMALL, TRACE_REGION);
    MeshCommandQueue queue(mesh);
    layouts(mesh, queue);
    parts(mesh, queue);
    clashes(mesh, queue);
    many(mesh, queue);
    threads(mesh);
    traces(mesh, queue);
    plans(mesh);
    allocators(mesh);
    sub_devices(mesh, queue);
    global_objects(mesh);
    Device* device = CreateDevice(6, L1_SMALL);
    single_chips(device);
    CloseDevice(device);

    // A child has books of its own.
    std::fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        standin::forget_books();
        MeshWorkload workload = on_all(mesh, make({"in the child"}, 1111));
        EnqueueMeshWorkload(queue, workload, false);
        auto kept = MeshBuffer::create(mesh, 7 * PAGE, PAGE, BufferType::DRAM);
        standin::plan(true);
        MeshBuffer::create(mesh, 7 * PAGE, PAGE, BufferType::DRAM);
        standin::plan(false);
        standin::print_books();
        _exit(0);
    }
    int status = 0;
    check(waitpid(child, &status, 0) == child && status == 0, "the child ends well");
    MeshWorkload last = on_all(mesh, make({"after the fork"}, 1111));
    EnqueueMeshWorkload(queue, last, false);
    // A trace, a sub-device and a planned buffer go with the mesh; a program does not.
    mesh->load_sub_device_manager(mesh->create_sub_device_manager(2, 96 * 1024));
    auto local = in_l1(mesh.get(), 1, SubDeviceId{1});
    local.reset();
    standin::plan(true);
    auto planned = MeshBuffer::create(mesh, 9 * PAGE, PAGE, BufferType::DRAM);
    standin::plan(false);
    mesh->close();
    standin::print_books();
    _exit(0);
}
