// The same as exceptions.cpp for the functions of programs, traces and what else has no buffer of its own.
#include "program.hpp"
#include "programs.hpp"

#include <cerrno>
#include <string>

using namespace tt::tt_metal;
using namespace tt::tt_metal::distributed;
using program::check;
using standin::Role;

namespace {

constexpr DeviceAddr PAGE = 2048;
// No error of the system.
constexpr int MARK = 4711;

template <int N>
struct Thrown {
    int value;
};

int destroyed = 0;

struct Local {
    ~Local() { ++destroyed; }
};

// Makes the next call of `role` throw a Thrown<N>; `call` must let it through, and work the second time.
template <int N, typename Call>
void each_way(Role role, const char* name, Call call) {
    standin::fail_next(role, [] { throw Thrown<N>{1000 + N}; });
    int before = destroyed;
    errno = MARK;
    try {
        Local local;
        call();
        check(false, name);
    } catch (const Thrown<N>& thrown) {
        check(errno == MARK, "errno is kept by an exception");
        std::printf("%s threw %d\n", name, thrown.value);
    } catch (...) {
        check(false, "the exception has its type");
    }
    check(destroyed == before + 1, "the caller's locals are destroyed");
    check(standin::inside() == 0, "the runtime's locals are destroyed");
    errno = MARK;
    call();
    check(standin::errno_at_entry() == MARK, "the runtime sees the caller's errno");
    check(errno == MARK, "errno is kept");
}

CoreRangeSet cores() { return CoreRangeSet({CoreRange{{0, 0}, {3, 3}}}); }

} // namespace

int main() {
    auto mesh = MeshDevice::create({0, 1, 2, 3}, 32768, 1 << 20);
    MeshCommandQueue queue(mesh);
    Program program;
    detail::ProgramImpl& impl = program.impl();

    each_way<1>(Role::add_kernel, "add kernel", [&] {
        impl.add_kernel(std::make_shared<Kernel>("a kernel with a long name"), HalProgrammableCoreType::TENSIX);
    });
    each_way<2>(Role::add_circular_buffer, "add circular buffer",
                [&] { impl.add_circular_buffer_(std::make_shared<CircularBufferImpl>(cores(), 4096)); });
    auto again = [&](auto call) {
        return [&, call] {
            impl.invalidate_circular_buffer_allocation();
            call();
        };
    };
    auto circular = again([&] { impl.allocate_circular_buffers(mesh.get()); });
    each_way<3>(Role::lay_out_circular, "lay out circular buffers", circular);
    each_way<4>(Role::circular_buffer, "circular buffer", circular);
    each_way<5>(Role::mark_address, "mark address", circular);
    each_way<6>(Role::validate_region, "validate region", [&] { impl.validate_circular_buffer_region(mesh.get()); });
#if ERA > 1
    impl.add_dataflow_buffer(cores(), 64);
    impl.add_scratchpad(cores(), 96);
    auto dataflow = again([&] { impl.allocate_dataflow_buffers(mesh.get()); });
    each_way<7>(Role::lay_out_dataflow, "lay out dataflow buffers", dataflow);
    circular();
    each_way<8>(Role::mark_address, "mark address of a dataflow buffer", dataflow);
    circular();
    auto scratchpads = again([&] { impl.allocate_scratchpads(mesh.get()); });
    each_way<9>(Role::lay_out_scratchpads, "lay out scratchpads", scratchpads);
    each_way<10>(Role::validate_region, "validate dataflow region",
                 [&] { impl.validate_dataflow_buffer_region(mesh.get()); });
    impl.invalidate_circular_buffer_allocation();
    impl.compile_and_allocate(mesh.get());
#endif

    MeshWorkload workload;
    MeshCoordinateRange whole({0, 0}, {1, 1});
    each_way<11>(Role::enlist, "enlist", [&] { workload.add_program(whole, std::move(program)); });
    auto enqueue = [&] { EnqueueMeshWorkload(queue, workload, false); };
    each_way<12>(Role::enqueue, "enqueue", enqueue);
    each_way<13>(Role::compile, "compile", enqueue);
    each_way<14>(Role::load_binaries, "load binaries", enqueue);
    {
        // On a thread of the runtime's own.
        MeshWorkload two;
        for (std::uint32_t row : {0, 1}) {
            Program one;
            one.impl().add_circular_buffer_(std::make_shared<CircularBufferImpl>(cores(), 32 + row));
            two.add_program({{row, 0}, {row, 1}}, std::move(one));
        }
        each_way<15>(Role::lay_out_circular, "lay out on another thread",
                     [&] { EnqueueMeshWorkload(queue, two, false); });
    }
    // What fails to be allocated for a purpose has it no longer after that.
    each_way<16>(Role::allocate, "allocate for a semaphore", [&] {
#if ERA == 3
        GlobalSemaphore semaphore(*mesh, cores(), 0);
#else
        GlobalSemaphore semaphore(mesh.get(), cores(), 0);
#endif
    });
    auto data = BufferMaker::create(mesh.get(), PAGE, PAGE, BufferType::DRAM);
    each_way<17>(Role::global_semaphore, "global semaphore", [&] {
#if ERA == 3
        CreateGlobalSemaphore(*mesh, cores(), 0);
#else
        GlobalSemaphore semaphore(mesh.get(), cores(), 0);
#endif
    });
    each_way<18>(Role::global_circular_buffer, "global circular buffer", [&] {
#if ERA == 3
        experimental::GlobalCircularBuffer buffer(*mesh, {}, 64);
#else
        experimental::GlobalCircularBuffer buffer(mesh.get(), {}, 64);
#endif
    });

    MeshTraceId trace{3};
    each_way<19>(Role::begin_trace, "begin trace", [&] { mesh->begin_mesh_trace(0, trace); });
    enqueue();
    // This capture goes on after the failure.
    each_way<20>(Role::end_trace, "end trace", [&] { mesh->end_mesh_trace(0, trace); });
    each_way<21>(Role::replay_trace, "replay trace", [&] { mesh->replay_mesh_trace(0, trace, false); });
    each_way<22>(Role::release_trace, "release trace", [&] { mesh->release_mesh_trace(trace); });
#ifndef FIRST_RELEASE
    each_way<32>(Role::begin_new_trace, "begin new trace", [&] { trace = mesh->begin_mesh_trace(0); });
    mesh->end_mesh_trace(0, trace);
    each_way<33>(Role::begin_trace, "begin trace inside", [&] { trace = mesh->begin_mesh_trace(0); });
    mesh->end_mesh_trace(0, trace);
#endif

    each_way<23>(Role::plan, "plan", [&] { BufferMaker::create(mesh.get(), PAGE, PAGE, BufferType::DRAM); });
    each_way<24>(Role::unplan, "unplan", [&] { GraphTracker::instance().track_deallocate(data.get()); });
    each_way<25>(Role::reshape, "reshape", [&] { mesh->reshape(MeshShape({4, 1})); });
    auto manager = mesh->create_sub_device_manager(1, 4096);
    each_way<26>(Role::load_sub_devices, "load sub-devices", [&] { mesh->load_sub_device_manager(manager); });
    each_way<27>(Role::clear_sub_devices, "clear sub-devices", [&] { mesh->clear_loaded_sub_device_manager(); });
    data.reset();
#ifndef FIRST_RELEASE
    AllocatorState state = mesh->memory().extract_state();
    each_way<28>(Role::override_state, "override state", [&] { mesh->memory().override_state(state); });
#endif

    Device* device = CreateDevice(5, 32768);
    {
        Program launched;
        each_way<29>(Role::launch, "launch", [&] { launch(device, launched); });
        each_way<30>(Role::load_binaries, "binaries of a launched program", [&] {
            Program other;
            launch(device, other);
        });
    }
    each_way<31>(Role::program_end, "the end of a program", [] { delete new detail::ProgramImpl; });
    standin::print_books();
    std::_Exit(3);
}
