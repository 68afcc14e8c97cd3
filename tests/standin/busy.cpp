// Threads that allocate and free until they are killed, or for so many steps each. What they have begun
// and what they have done stands in a shared file, which outlives whatever ends the program.
//
//     busy FILE THREADS SEED [STEPS]
//
// The file holds words of 64 bits: a header of 8, then a block for each thread (see Header and Thread).
#include "program.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <random>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace tt::tt_metal;

namespace {

using Word = std::atomic<std::uint64_t>;
static_assert(sizeof(Word) == 8 && Word::is_always_lock_free);

constexpr std::size_t PLACES = 56;

struct Header {
    Word pid;
    Word working; // threads that have begun
    Word elapsed_ns; // of all the work, once it is done
    std::array<Word, 5> unused;
};

// A place holds a buffer or none: its state in the lowest byte, its type in the next, its address above.
enum State : std::uint64_t { EMPTY, ALLOCATING, HELD, FREEING };

struct Thread {
    Word allocations_begun;
    Word allocations_done;
    Word frees_begun;
    Word frees_done;
    std::array<Word, 4> unused;
    std::array<Word, PLACES> places;
};

std::uint64_t word(State state, BufferType type, DeviceAddr address) {
    return state | static_cast<std::uint64_t>(type) << 8 | address << 16;
}

// Returns a sum of all that was done, which depends on the seed alone.
std::uint64_t work(const std::shared_ptr<distributed::MeshDevice>& mesh, Thread& books, unsigned seed,
                   std::uint64_t steps) {
    std::minstd_rand random(seed);
    std::array<std::shared_ptr<distributed::MeshBuffer>, PLACES> held;
    std::uint64_t sum = 0;
    for (std::uint64_t step = 0; steps == 0 || step < steps; ++step) {
        std::size_t at = random() % PLACES;
        Word& place = books.places[at];
        BufferType type = at % 4 == 0 ? BufferType::L1 : BufferType::DRAM;
        if (held[at] == nullptr) {
            DeviceAddr page = 32 * (1 + random() % 64);
            place = word(ALLOCATING, type, 0);
            ++books.allocations_begun;
            held[at] = distributed::MeshBuffer::create(mesh, 4 * page, page, type);
            ++books.allocations_done;
            place = word(HELD, type, held[at]->address());
            sum = sum * 31 + page;
        } else {
            place = word(FREEING, type, held[at]->address());
            ++books.frees_begun;
            held[at].reset();
            ++books.frees_done;
            place = word(EMPTY, type, 0);
            sum = sum * 31 + at;
        }
    }
    return sum;
}

} // namespace

int main(int count, char** arguments) {
    program::check(count >= 4, "busy FILE THREADS SEED [STEPS]");
    std::size_t threads = std::strtoul(arguments[2], nullptr, 10);
    unsigned seed = static_cast<unsigned>(std::strtoul(arguments[3], nullptr, 10));
    std::uint64_t steps = count > 4 ? std::strtoull(arguments[4], nullptr, 10) : 0;
    int file = open(arguments[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    std::size_t bytes = sizeof(Header) + threads * sizeof(Thread);
    program::check(file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0, "the file can be made");
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    program::check(memory != MAP_FAILED, "the file can be mapped");
    close(file);
    Header& header = *static_cast<Header*>(memory);
    Thread* books = reinterpret_cast<Thread*>(&header + 1);
    header.pid = static_cast<std::uint64_t>(getpid());
    auto start = std::chrono::steady_clock::now();

    auto mesh = distributed::MeshDevice::create({0, 1});
    std::vector<std::uint64_t> sums(threads);
    std::vector<std::thread> workers;
    for (std::size_t thread = 0; thread < threads; ++thread) {
        workers.emplace_back([&, thread] {
            ++header.working;
            sums[thread] = work(mesh, books[thread], seed + static_cast<unsigned>(thread), steps);
        });
    }
    for (std::thread& worker : workers) {
        worker.join();
    }
    header.elapsed_ns = static_cast<std::uint64_t>((std::chrono::steady_clock::now() - start).count());
    for (std::size_t thread = 0; thread < threads; ++thread) {
        std::printf("%zu: %" PRIu64 " allocations, %" PRIu64 " frees, %016" PRIx64 "\n", thread,
                    books[thread].allocations_done.load(), books[thread].frees_done.load(), sums[thread]);
    }
    std::fflush(stdout);
    _exit(7);
}
