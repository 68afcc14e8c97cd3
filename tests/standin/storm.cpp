// Threads allocate and free at random, often what another thread allocated, and the program ends without
// a word to the runtime.
#include "program.hpp"

#include <random>
#include <stdexcept>
#include <thread>

#include <unistd.h>

using namespace tt::tt_metal;

namespace {

constexpr int THREADS = 8;
constexpr int STEPS = 4000;

// Buffers that any thread may free.
struct Shared {
    std::mutex mutex;
    std::vector<std::shared_ptr<distributed::MeshBuffer>> buffers;
};

void work(const std::shared_ptr<distributed::MeshDevice>& mesh, Shared& shared, unsigned seed) {
    std::mt19937 random(seed);
    auto below = [&](std::size_t end) { return static_cast<std::uint32_t>(random() % end); };
    std::vector<std::shared_ptr<distributed::MeshBuffer>> own;
    for (int step = 0; step < STEPS; ++step) {
        if (below(100) < 55) {
            constexpr BufferType TYPES_USED[] = {BufferType::DRAM, BufferType::L1, BufferType::L1_SMALL};
            BufferType type = TYPES_USED[below(3)];
            DeviceAddr page = type == BufferType::L1_SMALL ? 16 + below(100) : 32 * (1 + below(64));
            BufferShardingArgs sharding{type == BufferType::L1 ? below(3) * 8 : 0};
            try {
                auto buffer = distributed::MeshBuffer::create(mesh, page * (1 + below(500)), page, type,
                                                              sharding);
                std::lock_guard lock(shared.mutex);
                (below(2) != 0 ? own : shared.buffers).push_back(std::move(buffer));
            } catch (const std::runtime_error&) {
                // Memory ran out.
                own.clear();
            }
        } else {
            // Freed when the lock is given up, so that several threads are in the runtime at once.
            std::shared_ptr<distributed::MeshBuffer> gone;
            std::lock_guard lock(shared.mutex);
            auto& from = below(2) != 0 && !own.empty() ? own : shared.buffers;
            if (!from.empty()) {
                std::swap(from[below(from.size())], from.back());
                gone = std::move(from.back());
                from.pop_back();
            }
        }
    }
    std::lock_guard lock(shared.mutex);
    shared.buffers.insert(shared.buffers.end(), own.begin(), own.end());
}

} // namespace

int main() {
    auto mesh = distributed::MeshDevice::create({4, 0, 2, 6}, 32768);
    Shared shared;
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < THREADS; ++thread) {
        threads.emplace_back([&, thread] { work(mesh, shared, 1000 + thread); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    standin::print_books();
    _exit(0);
}
