// The runtime's own books, which ttalloc's are held against, and what else only the tests need.
#include "tt_metal.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <tuple>
#include <utility>

namespace standin {

namespace {

using tt::tt_metal::TYPES;

constexpr std::array<const char*, TYPES> TYPE_NAMES = {"DRAM", "L1", "SYSTEM_MEMORY", "L1_SMALL", "TRACE"};
constexpr std::array ROLE_NAMES = {
    "allocate",   "deallocate",     "deallocate_all", "clear",           "allocator_end",
    "create",     "create_at_address", "view",        "mesh_open",       "mesh_impl_open",
    "mesh_close", "mesh_impl_close",   "device_close",   "hybrid",
};

struct Totals {
    std::uint64_t buffers = 0;
    std::uint64_t bytes = 0;
    std::uint64_t bytes_per_bank = 0;
    std::uint64_t reserved_bytes = 0;

    void add(const Totals& other, std::uint64_t sign = 1) {
        buffers += sign * other.buffers;
        bytes += sign * other.bytes;
        bytes_per_bank += sign * other.bytes_per_bank;
        reserved_bytes += sign * other.reserved_bytes;
    }
    void subtract(const Totals& other) { add(other, -1); }
};

struct Memory {
    std::uint32_t banks = 0;
    std::uint64_t bank_bytes = 0;
    Totals live;
    Totals live_at_close;
    Totals peak;
    std::uint64_t allocations = 0;
    std::uint64_t frees = 0;
    std::uint64_t released = 0;
    std::uint64_t failed = 0;
    std::uint64_t allocated_bytes_total = 0;
};

struct Chip {
    std::array<Memory, TYPES> memory;
    int open = 0;
    bool was_closed = false;
    bool reopened = false;
};

struct Live {
    Block block;
    std::vector<int> chips;
    Totals totals;
};

struct Books {
    std::mutex mutex;
    std::map<int, Chip> chips;
    std::map<std::tuple<const void*, BufferType, DeviceAddr>, Live> live;
    std::array<std::function<void()>, ROLE_NAMES.size()> failures;
};

Books& books() {
    static Books& books = *new Books;
    return books;
}

struct Heap {
    std::mutex mutex;
    // Objects that ended, by size.
    std::map<std::size_t, std::vector<void*>> ended;
};

Heap& heap() {
    static Heap& heap = *new Heap;
    return heap;
}

std::array<std::atomic<std::uint64_t>, ROLE_NAMES.size()> calls;
std::array<std::atomic<bool>, ROLE_NAMES.size()> failing;
std::atomic<int> entered;
std::atomic<bool> is_capturing;
std::atomic<DeviceAddr> exaggerated;
thread_local int errno_then;

std::size_t index(BufferType type) { return static_cast<std::size_t>(type); }

// Ends what `live` points to, and returns what comes after it.
auto end(decltype(Books::live)::iterator live, std::uint64_t Memory::*count) {
    for (int chip : live->second.chips) {
        Memory& memory = books().chips[chip].memory[index(live->second.block.type)];
        memory.*count += 1;
        memory.live.subtract(live->second.totals);
    }
    return books().live.erase(live);
}

auto first_of(const void* allocator) {
    return books().live.lower_bound({allocator, BufferType::DRAM, 0});
}

std::string to_json(const Totals& totals) {
    return "{\"buffers\":" + std::to_string(totals.buffers) + ",\"bytes\":" + std::to_string(totals.bytes) +
           ",\"bytes_per_bank\":" + std::to_string(totals.bytes_per_bank) +
           ",\"reserved_bytes\":" + std::to_string(totals.reserved_bytes) + "}";
}

// Elements, each followed by a comma, as a list.
std::string list(std::string elements) {
    if (!elements.empty()) {
        elements.pop_back();
    }
    return "[" + elements + "]";
}

} // namespace

void* Recycled::operator new(std::size_t bytes) {
    {
        std::lock_guard lock(heap().mutex);
        std::vector<void*>& ended = heap().ended[bytes];
        if (!ended.empty()) {
            void* object = ended.back();
            ended.pop_back();
            return object;
        }
    }
    return ::operator new(bytes);
}

void Recycled::operator delete(void* object, std::size_t bytes) {
    std::lock_guard lock(heap().mutex);
    heap().ended[bytes].push_back(object);
}

void fail_next(Role role, std::function<void()> action) {
    std::lock_guard lock(books().mutex);
    books().failures[static_cast<std::size_t>(role)] = std::move(action);
    failing[static_cast<std::size_t>(role)] = true;
}

int inside() { return entered; }
int errno_at_entry() { return errno_then; }
void capture(bool on) { is_capturing = on; }
bool capturing() { return is_capturing; }
void exaggerate(DeviceAddr bytes) { exaggerated = bytes; }
DeviceAddr exaggeration() { return exaggerated; }

void Mutex::lock() {
    if (owner_ == std::this_thread::get_id()) {
        std::fputs("an allocator was called by a thread that has locked it\n", stderr);
        std::abort();
    }
    mutex_.lock();
    owner_ = std::this_thread::get_id();
}

void Mutex::unlock() {
    owner_ = std::thread::id();
    mutex_.unlock();
}

Entry::Witness::Witness() { ++entered; }
Entry::Witness::~Witness() { --entered; }

Entry::Entry(Role role) {
    errno_then = errno;
    auto at = static_cast<std::size_t>(role);
    ++calls[at];
    if (failing[at].exchange(false)) {
        std::function<void()> action;
        {
            std::lock_guard lock(books().mutex);
            action = std::move(books().failures[at]);
        }
        action();
    }
}

void book_banks(const std::vector<int>& chips, BufferType type, std::uint32_t banks, DeviceAddr bank_bytes) {
    std::lock_guard lock(books().mutex);
    for (int chip : chips) {
        Memory& memory = books().chips[chip].memory[index(type)];
        memory.banks = banks;
        memory.bank_bytes = bank_bytes;
    }
}

void book_allocation(const void* allocator, const std::vector<int>& chips, const Block& block) {
    std::lock_guard lock(books().mutex);
    std::uint64_t banks = books().chips[chips.front()].memory[index(block.type)].banks;
    Totals totals{1, block.bytes, block.bytes_per_bank, block.bytes_per_bank * banks};
    books().live[{allocator, block.type, block.address}] = {block, chips, totals};
    for (int chip : chips) {
        Memory& memory = books().chips[chip].memory[index(block.type)];
        memory.allocations += 1;
        memory.allocated_bytes_total += block.bytes;
        memory.live.add(totals);
        if (memory.live.reserved_bytes > memory.peak.reserved_bytes) {
            memory.peak = memory.live;
        }
    }
}

void book_failure(const std::vector<int>& chips, BufferType type) {
    std::lock_guard lock(books().mutex);
    for (int chip : chips) {
        books().chips[chip].memory[index(type)].failed += 1;
    }
}

void book_free(const void* allocator, BufferType type, DeviceAddr address) {
    std::lock_guard lock(books().mutex);
    auto live = books().live.find({allocator, type, address});
    if (live != books().live.end()) {
        end(live, &Memory::frees);
    }
}

void book_release(const void* allocator) {
    std::lock_guard lock(books().mutex);
    auto live = first_of(allocator);
    while (live != books().live.end() && std::get<0>(live->first) == allocator) {
        live = end(live, &Memory::released);
    }
}

void book_open(const std::vector<int>& chips) {
    std::lock_guard lock(books().mutex);
    for (int id : chips) {
        Chip& chip = books().chips[id];
        chip.reopened |= chip.open == 0;
        ++chip.open;
    }
}

void book_close(const void* allocator, const std::vector<int>& chips) {
    std::lock_guard lock(books().mutex);
    for (int id : chips) {
        auto found = books().chips.find(id);
        if (found == books().chips.end()) {
            continue;
        }
        Chip& chip = found->second;
        chip.open -= chip.open > 0;
        chip.was_closed = true;
        if (std::exchange(chip.reopened, false)) {
            for (Memory& memory : chip.memory) {
                memory.live_at_close = {};
            }
        }
        auto live = first_of(allocator);
        for (; live != books().live.end() && std::get<0>(live->first) == allocator; ++live) {
            chip.memory[index(live->second.block.type)].live_at_close.add(live->second.totals);
        }
    }
}

void forget_books() {
    std::lock_guard lock(books().mutex);
    for (auto& [id, chip] : books().chips) {
        for (Memory& memory : chip.memory) {
            Memory fresh;
            fresh.banks = memory.banks;
            fresh.bank_bytes = memory.bank_bytes;
            memory = fresh;
        }
        chip.was_closed = false;
    }
    books().live.clear();
    for (auto& count : calls) {
        count = 0;
    }
}

void print_books() {
    std::lock_guard lock(books().mutex);
    auto number = [](const char* name, std::uint64_t value) {
        return "\"" + std::string(name) + "\":" + std::to_string(value) + ",";
    };
    std::string devices;
    for (const auto& [id, chip] : books().chips) {
        std::string types;
        for (std::size_t type = 0; type < TYPES; ++type) {
            const Memory& memory = chip.memory[type];
            if (memory.banks == 0) {
                continue;
            }
            types += "{\"type\":\"" + std::string(TYPE_NAMES[type]) + "\"," + number("banks", memory.banks) +
                     number("bank_bytes", memory.bank_bytes) + "\"live\":" + to_json(memory.live) +
                     ",\"live_at_close\":" + (chip.was_closed ? to_json(memory.live_at_close) : "null") +
                     ",\"peak\":" + to_json(memory.peak) + "," + number("allocations", memory.allocations) +
                     number("frees", memory.frees) + number("released", memory.released) +
                     number("failed", memory.failed) + "\"allocated_bytes_total\":" +
                     std::to_string(memory.allocated_bytes_total) + "},";
        }
        devices += "{\"chip\":" + std::to_string(id) + ",\"memory\":" + list(types) + "},";
    }
    std::string live_buffers;
    for (const auto& [key, live] : books().live) {
        std::string chips;
        for (int chip : live.chips) {
            chips += std::to_string(chip) + ",";
        }
        const Block& block = live.block;
        live_buffers += "{\"chips\":" + list(chips) + ",\"type\":\"" + TYPE_NAMES[index(block.type)] + "\"," +
                        number("address", block.address) + number("bytes", block.bytes) +
                        number("bytes_per_bank", block.bytes_per_bank) + "\"page_bytes\":" +
                        std::to_string(block.page_bytes) + "},";
    }
    std::string counts;
    for (std::size_t role = 0; role < ROLE_NAMES.size(); ++role) {
        counts += number(ROLE_NAMES[role], calls[role]);
    }
    counts.pop_back();
    std::printf("{\"devices\":%s,\"live_buffers\":%s,\"calls\":{%s}}\n", list(devices).c_str(),
                list(live_buffers).c_str(), counts.c_str());
    std::fflush(stdout);
}

} // namespace standin
