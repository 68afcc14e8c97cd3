// Allocates and frees as fast as it can. With an argument it stops its parent, which must be ttalloc-run,
// until it comes to a halt itself, because the ring is full.
#include "program.hpp"

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include <unistd.h>

using namespace tt::tt_metal;
using namespace std::chrono_literals;

int main(int count, char**) {
    constexpr int THREADS = 2;
    constexpr int PAIRS = 125'000;
    auto mesh = distributed::MeshDevice::create({0});
    auto kept = BufferMaker::create(mesh.get(), 4096, 4096, BufferType::DRAM);
    std::atomic<int> done = 0;
    bool stop = count > 1;
    if (stop) {
        kill(getppid(), SIGSTOP);
    }
    std::vector<std::thread> threads;
    for (int thread = 0; thread < THREADS; ++thread) {
        threads.emplace_back([&] {
            for (int pair = 0; pair < PAIRS; ++pair) {
                BufferMaker::create(mesh.get(), 4096, 4096, BufferType::DRAM);
                ++done;
            }
        });
    }
    if (stop) {
        int then = 0;
        do {
            then = done;
            std::this_thread::sleep_for(300ms);
        } while (then == 0 || then != done);
        kill(getppid(), SIGCONT);
        program::check(then < THREADS * PAIRS, "the program waits for the ring");
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    standin::print_books();
    _exit(0);
}
