// Every hooked function throws an exception of a type of its own, which is caught here, and works the next
// time. errno is what it was before each call.
#include "program.hpp"

#include <cerrno>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

#include <pthread.h>

using namespace tt::tt_metal;
using program::check;
using standin::Role;

namespace {

constexpr DeviceAddr PAGE = 2048;
constexpr DeviceAddr SIZE = 100 * PAGE;
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
        check(false, "an exception arrives");
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

} // namespace

int main() {
    std::shared_ptr<distributed::MeshDevice> mesh;
    {
        // The process's first call of the runtime, where ttalloc has most to do.
        errno = MARK;
        auto first = distributed::MeshDevice::create({0}, 32768);
        check(errno == MARK && standin::errno_at_entry() == MARK, "errno is kept by the first call");
        first->close();
    }
#if ERA == 3
    constexpr Role OPEN = Role::mesh_impl_open;
#else
    constexpr Role OPEN = Role::mesh_open;
#endif
    each_way<1>(OPEN, "open", [&] { mesh = distributed::MeshDevice::create({0}, 32768); });
#if ERA == 2
    each_way<2>(Role::mesh_impl_open, "open one level down",
                [&] { mesh = distributed::MeshDevice::create({0}, 32768); });
#endif
    auto make = [&](BufferType type = BufferType::DRAM) {
        return BufferMaker::create(mesh.get(), SIZE, PAGE, type);
    };

    each_way<3>(Role::create, "create", [&] { make(); });
    each_way<4>(Role::allocate, "allocate", [&] { make(); });
    each_way<5>(Role::create_at_address, "create at address", [&] {
        BufferMaker::create(mesh->devices().front(), DeviceAddr{1} << 20, SIZE, PAGE, BufferType::DRAM);
    });
    auto buffer = make();
    each_way<6>(Role::view, "view", [&] { view_of(*buffer, {0, PAGE}); });
    each_way<7>(Role::create_at_address, "create inside view", [&] { view_of(*buffer, {0, PAGE}); });
    each_way<8>(Role::allocate, "allocate inside a tensor", [&] {
        distributed::MeshBuffer::create(mesh, SIZE, PAGE, BufferType::L1);
    });
    each_way<9>(Role::create_at_address, "create inside a tensor", [&] {
        distributed::MeshBuffer::create(mesh, SIZE, PAGE, BufferType::L1);
    });

    // What an earlier create wanted, and did not get, is not taken for what a later one gets.
    auto small = BufferMaker::create(mesh.get(), 64, 64, BufferType::L1_SMALL);

    try {
        BufferMaker::create(mesh.get(), std::uint64_t{1} << 40, PAGE, BufferType::DRAM);
        check(false, "memory runs out");
    } catch (const std::runtime_error& error) {
        std::printf("%s\n", error.what());
    }

    // An exception that was kept goes through once more.
    std::exception_ptr kept;
    standin::fail_next(Role::allocate, [] { throw Thrown<10>{1010}; });
    try {
        make();
    } catch (...) {
        kept = std::current_exception();
    }
    standin::fail_next(Role::create, [&] { std::rethrow_exception(kept); });
    try {
        make();
        check(false, "a kept exception arrives");
    } catch (const Thrown<10>& thrown) {
        std::printf("rethrown %d\n", thrown.value);
    }

    // One that is caught and replaced on the way.
    standin::fail_next(Role::create_at_address, [&] {
        standin::fail_next(Role::allocate, [] { throw Thrown<11>{1011}; });
        try {
            make();
        } catch (const Thrown<11>& inner) {
            throw std::out_of_range("after " + std::to_string(inner.value));
        }
    });
    try {
        view_of(*buffer, {0, PAGE});
        check(false, "a replaced exception arrives");
    } catch (const std::out_of_range& error) {
        std::printf("replaced: %s\n", error.what());
    }

    // A thread that ends inside, which unwinds like an exception that nobody may keep.
    standin::fail_next(Role::allocate, [] { pthread_exit(reinterpret_cast<void*>(std::intptr_t{12})); });
    pthread_t thread;
    auto in_thread = [](void* device) -> void* {
        Local local;
        BufferMaker::create(static_cast<IDevice*>(device), SIZE, PAGE, BufferType::DRAM);
        return nullptr;
    };
    int before = destroyed;
    check(pthread_create(&thread, nullptr, in_thread, mesh.get()) == 0, "a thread starts");
    void* result = nullptr;
    pthread_join(thread, &result);
    check(destroyed == before + 1 && standin::inside() == 0, "a thread that ends is unwound");
    std::printf("the thread ended with %ld\n", static_cast<long>(reinterpret_cast<std::intptr_t>(result)));

    buffer.reset();
    small.reset();
    each_way<13>(Role::deallocate_all, "deallocate all", [&] { mesh->memory().deallocate_buffers(); });
    each_way<14>(Role::clear, "clear", [&] { mesh->memory().clear(); });
    AllocatorConfig config{{0}};
    each_way<15>(Role::allocator_end, "the end of an allocator on the heap",
                 [&] { delete new ALLOCATOR(config); });
    each_way<16>(Role::allocator_end, "the end of an allocator on the stack",
                 [&] { ALLOCATOR allocator(config); });
    each_way<17>(Role::allocator_end, "the end of a derived allocator",
                 [&] { BankedAllocator allocator(config); });

    each_way<18>(Role::device_close, "close of a chip", [&] {
        Device device({{7}});
        device.close();
    });
    each_way<19>(Role::mesh_close, "close of a mesh", [&] { mesh->close(); });
#if ERA > 1
    each_way<20>(Role::mesh_impl_close, "close one level down",
                 [&] { mesh->implementation().close_impl(mesh.get()); });
#endif
    mesh.reset();

    // A free that fails, and is done again: ttalloc has written it down before it failed.
    mesh = distributed::MeshDevice::create({0}, 32768);
    buffer = make();
    auto other = make();
    each_way<21>(Role::deallocate, "deallocate", [&] { mesh->memory().deallocate_buffer(buffer.get()); });
    standin::print_books();
    std::_Exit(3);
}
