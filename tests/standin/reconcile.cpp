// What the allocators are asked, and when: the argument names the story.
#include "program.hpp"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace tt::tt_metal;
using program::check;

namespace {

constexpr DeviceAddr PAGE = 2048;
constexpr DeviceAddr TOO_MUCH = DeviceAddr{1} << 40;
constexpr DeviceAddr L1_SMALL = 32768;

using Mesh = std::shared_ptr<distributed::MeshDevice>;

void fail(IDevice* device, BufferType type) {
    try {
        BufferMaker::create(device, TOO_MUCH, PAGE, type);
        check(false, "memory runs out");
    } catch (const std::runtime_error&) {
    }
}

// Buffers of every type, failures, a submesh, a legacy device; everything is closed twice, some with
// buffers left.
void agree() {
    Mesh mesh = distributed::MeshDevice::create({0, 1}, L1_SMALL, PAGE * 8);
    Mesh part = distributed::MeshDevice::create({1}, L1_SMALL);
    Device* device = CreateDevice(2);
    auto one = BufferMaker::create(mesh.get(), 100 * PAGE, PAGE, BufferType::DRAM);
    auto two = BufferMaker::create(mesh.get(), 100 * PAGE, PAGE, BufferType::L1, {8});
    auto three = BufferMaker::create(mesh.get(), 64, 16, BufferType::L1_SMALL, {2});
    auto four = BufferMaker::create(mesh.get(), 4 * PAGE, PAGE, BufferType::TRACE);
    auto five = BufferMaker::create(part.get(), 10 * PAGE, PAGE, BufferType::DRAM);
    auto six = BufferMaker::create(device, 10 * PAGE, PAGE, BufferType::L1);
    fail(mesh.get(), BufferType::DRAM);
    one.reset();
    fail(mesh.get(), BufferType::DRAM);
    fail(mesh.get(), BufferType::L1);
    fail(mesh.get(), BufferType::L1_SMALL);
    fail(part.get(), BufferType::TRACE);
    fail(device, BufferType::L1);
    // No banks: it is refused, and nothing can be asked.
    fail(mesh.get(), BufferType::SYSTEM_MEMORY);
    five.reset();
    part->close();
    part->close();
    CloseDevice(device);
    mesh->close();
    mesh->close();
}

// Real buffers that die in a capture stay allocated, in the allocator and in the books.
void capture() {
    Mesh mesh = distributed::MeshDevice::create({0});
    auto one = BufferMaker::create(mesh.get(), 100 * PAGE, PAGE, BufferType::DRAM);
    standin::capture(true);
    one.reset();
    standin::capture(false);
    mesh->close();
}

void exaggerate() {
    Mesh mesh = distributed::MeshDevice::create({0, 1});
    auto one = BufferMaker::create(mesh.get(), 100 * PAGE, PAGE, BufferType::L1);
    fail(mesh.get(), BufferType::DRAM);
    standin::exaggerate(4096);
    fail(mesh.get(), BufferType::DRAM);
    mesh->close();
}

// What an answer owns is given back.
void memory() {
    Mesh mesh = distributed::MeshDevice::create({0});
    fail(mesh.get(), BufferType::DRAM);
    std::size_t before = mallinfo2().uordblks;
    for (int time = 0; time < 5000; ++time) {
        fail(mesh.get(), BufferType::DRAM);
    }
    std::size_t after = mallinfo2().uordblks;
    check(after < before + (1 << 20), "nothing is lost by asking");
    mesh->close();
}

// Threads allocate, free and fail on the same allocator, and another mesh closes at the same time.
void race() {
    Mesh mesh = distributed::MeshDevice::create({0});
    std::vector<std::thread> threads;
    std::atomic<bool> done = false;
    for (int thread = 0; thread < 3; ++thread) {
        threads.emplace_back([&, thread] {
            for (int step = 0; !done; ++step) {
                auto one = BufferMaker::create(mesh.get(), (1 + step % 50) * PAGE, PAGE, BufferType::DRAM);
                auto two = BufferMaker::create(mesh.get(), (1 + thread) * PAGE, PAGE, BufferType::DRAM);
            }
        });
    }
    for (int step = 0; step < 3000; ++step) {
        fail(mesh.get(), BufferType::DRAM);
        if (step % 300 == 0) {
            distributed::MeshDevice::create({1})->close();
        }
    }
    done = true;
    for (std::thread& thread : threads) {
        thread.join();
    }
    mesh->close();
}

// A forked child has memory that none of its records tells of, and some of its own.
void forked() {
    Mesh mesh = distributed::MeshDevice::create({0});
    auto one = BufferMaker::create(mesh.get(), 100 * PAGE, PAGE, BufferType::DRAM);
    pid_t child = fork();
    if (child == 0) {
        auto two = BufferMaker::create(mesh.get(), 10 * PAGE, PAGE, BufferType::DRAM);
        fail(mesh.get(), BufferType::DRAM);
        Mesh own = distributed::MeshDevice::create({1});
        auto three = BufferMaker::create(own.get(), 10 * PAGE, PAGE, BufferType::DRAM);
        own->close();
        mesh->close();
        _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    check(status == 0, "the child ends well");
    mesh->close();
}

// L1 that is given core by core is not in the statistics of a chip's allocator.
void hybrid() {
    Mesh mesh = distributed::MeshDevice::create({0});
    Device* device = CreateDevice(1);
#if ERA > 1
    mesh->memory().set_hybrid_device_allocators({&device->memory()});
#endif
#if ERA == 3
    check(mesh->memory().try_begin_hybrid_allocation({&device->memory()}), "a result goes through");
#endif
    auto one = BufferMaker::create(device, 10 * PAGE, PAGE, BufferType::L1);
    standin::exaggerate(ERA > 1 ? 4096 : 0);
    CloseDevice(device);
    standin::exaggerate(0);
    mesh->close();
}

} // namespace

int main(int, char** arguments) {
    struct Story {
        const char* name;
        void (*tell)();
    };
    for (auto [name, tell] : {Story{"agree", agree}, {"capture", capture}, {"exaggerate", exaggerate},
                              {"memory", memory}, {"race", race}, {"forked", forked}, {"hybrid", hybrid}}) {
        if (std::strcmp(name, arguments[1]) == 0) {
            tell();
            return 0;
        }
    }
    check(false, "there is such a story");
}
