// The runtime's own books of programs and traces.
#include "tt_metal.hpp"

#include <algorithm>
#include <set>

namespace standin {

namespace {

using tt::tt_metal::L1_BASE;

struct Program {
    bool told = false;
    bool has_ended = false;
    std::uint64_t runs = 0;
    std::uint64_t refused = 0;
    std::vector<std::string> kernels;
    std::vector<Local> local;
    std::optional<DeviceAddr> end;
    std::set<int> chips;
};

struct Chip {
    std::set<std::uint64_t> programs;
    std::uint64_t runs = 0;
    DeviceAddr largest = 0;
    // The least that was left, and then the lowest buffer's address and the region's end.
    struct Headroom {
        std::int64_t bytes;
        std::optional<DeviceAddr> lowest;
        DeviceAddr end;
    };
    std::optional<Headroom> headroom;
};

struct Trace {
    std::uint32_t id;
    int mesh;
    std::vector<int> chips;
    std::size_t dispatches = 0;
    DeviceAddr bytes_per_bank = 0;
    std::uint32_t banks = 0;
    std::uint64_t replays = 0;
    bool released = false;
};

struct Books {
    std::mutex mutex;
    std::map<std::uint64_t, Program> programs;
    std::map<int, Chip> chips;
    std::vector<Trace> traces;
};

Books& books() {
    static Books& books = *new Books;
    return books;
}

std::string list(std::string elements) {
    if (!elements.empty()) {
        elements.pop_back();
    }
    return "[" + elements + "]";
}

std::string number(const char* name, std::uint64_t value) {
    return "\"" + std::string(name) + "\":" + std::to_string(value) + ",";
}

template <typename Number>
std::string or_null(const std::optional<Number>& value) {
    return value ? std::to_string(*value) : "null";
}

template <typename Numbers>
std::string numbers(const Numbers& values) {
    std::string text;
    for (auto value : values) {
        text += std::to_string(value) + ",";
    }
    return list(text);
}

std::string to_json(const Local& local) {
    std::string ranges;
    std::size_t cores = 0;
    for (const CoreRange& range : local.ranges) {
        ranges += numbers(std::vector<std::size_t>{range.start.x, range.start.y, range.end.x, range.end.y}) + ",";
        for (std::size_t x = range.start.x; x <= range.end.x; ++x) {
            cores += range.end.y - range.start.y + 1;
        }
    }
    return "{\"kind\":\"" + std::string(local.kind) + "\",\"address\":" + or_null(local.address) + "," +
           number("bytes_per_core", local.bytes) + number("cores", cores) + "\"core_ranges\":" + list(ranges) + "}";
}

// All that a reader can tell programs apart by.
std::string description(const Program& program) {
    std::string kernels;
    std::set<std::string> seen;
    for (const std::string& kernel : program.kernels) {
        if (seen.insert(kernel).second) {
            kernels += "\"" + kernel + "\",";
        }
    }
    std::vector<std::string> buffers;
    for (const Local& local : program.local) {
        buffers.push_back(to_json(local));
    }
    std::sort(buffers.begin(), buffers.end());
    std::string all;
    for (const std::string& buffer : buffers) {
        all += buffer + ",";
    }
    return "\"kernels\":" + list(kernels) + ",\"chips\":" + numbers(program.chips) + ",\"circular_buffers\":" +
           list(all) + ",\"region_end_address\":" + or_null(program.end);
}

} // namespace

void book_program(std::uint64_t id, bool told, const std::vector<std::string>& kernels,
                  const std::vector<Local>& local, std::optional<DeviceAddr> end) {
    std::lock_guard lock(books().mutex);
    Program& program = books().programs[id];
    program.told = told;
    program.kernels = kernels;
    program.local = local;
    program.end = end;
}

void book_program_end(std::uint64_t id) {
    std::lock_guard lock(books().mutex);
    auto program = books().programs.find(id);
    if (program != books().programs.end()) {
        program->second.has_ended = true;
    }
}

void book_refusal(std::uint64_t id) {
    std::lock_guard lock(books().mutex);
    books().programs[id].refused += 1;
}

void book_run(std::uint64_t id, const std::vector<int>& chips) {
    std::lock_guard lock(books().mutex);
    Program& program = books().programs[id];
    program.runs += 1;
    for (int at : chips) {
        program.chips.insert(at);
        Chip& chip = books().chips[at];
        chip.runs += 1;
        chip.programs.insert(id);
        if (!program.end) {
            continue;
        }
        chip.largest = std::max(chip.largest, *program.end);
        constexpr DeviceAddr L1_END = L1_BASE + (1 << 20);
        std::optional<DeviceAddr> lowest = lowest_l1(at);
        auto left = static_cast<std::int64_t>(lowest.value_or(L1_END)) - static_cast<std::int64_t>(*program.end);
        if (!chip.headroom || left < chip.headroom->bytes) {
            chip.headroom = {left, lowest, *program.end};
        }
    }
}

std::size_t book_trace(std::uint32_t id, int mesh, const std::vector<int>& chips) {
    std::lock_guard lock(books().mutex);
    books().traces.push_back({id, mesh, chips});
    return books().traces.size() - 1;
}

void book_trace_end(std::size_t trace, std::size_t dispatches, DeviceAddr bytes_per_bank, std::uint32_t banks) {
    std::lock_guard lock(books().mutex);
    Trace& ended = books().traces.at(trace);
    ended.dispatches = dispatches;
    ended.bytes_per_bank = bytes_per_bank;
    ended.banks = banks;
}

void book_replay(std::size_t trace) {
    std::lock_guard lock(books().mutex);
    books().traces.at(trace).replays += 1;
}

void book_trace_release(std::size_t trace) {
    std::lock_guard lock(books().mutex);
    books().traces.at(trace).released = true;
}

std::string program_books_of(int chip) {
    std::lock_guard lock(books().mutex);
    auto found = books().chips.find(chip);
    if (found == books().chips.end()) {
        return "null";
    }
    const Chip& of = found->second;
    std::string largest = "null";
    if (of.largest != 0) {
        largest = "{" + number("bytes", of.largest - L1_BASE) + "\"end_address\":" + std::to_string(of.largest) + "}";
    }
    std::string headroom = "null";
    if (of.headroom) {
        headroom = "{\"bytes\":" + std::to_string(of.headroom->bytes) + ",\"lowest_buffer_address\":" +
                   or_null(of.headroom->lowest) + ",\"region_end_address\":" + std::to_string(of.headroom->end) + "}";
    }
    return "{" + number("programs", of.programs.size()) + number("runs", of.runs) + "\"largest\":" + largest +
           ",\"headroom\":" + headroom + "}";
}

std::string program_books() {
    std::lock_guard lock(books().mutex);
    struct Group {
        std::uint64_t first;
        std::uint64_t runs = 0;
        std::uint64_t refused = 0;
        std::uint64_t objects = 0;
        std::uint64_t live = 0;
    };
    std::map<std::string, Group> groups;
    for (const auto& [id, program] : books().programs) {
        if (program.runs + program.refused == 0) {
            continue;
        }
        Group& group = groups.try_emplace(description(program), Group{id}).first->second;
        group.runs += program.runs;
        group.refused += program.refused;
        group.objects += 1;
        group.live += !program.has_ended;
    }
    std::string programs;
    for (const auto& [description, group] : groups) {
        bool told = books().programs[group.first].told;
        programs += "{\"id\":" + (told ? std::to_string(group.first) : "null") + "," + number("runs", group.runs) +
                    number("refused", group.refused) + number("objects", group.objects) + number("live", group.live) +
                    description + "},";
    }
    std::string traces;
    for (const Trace& trace : books().traces) {
        traces += "{" + number("id", trace.id) + "\"mesh\":" + std::to_string(trace.mesh) + ",\"chips\":" +
                  numbers(trace.chips) + "," + number("bytes_per_bank", trace.bytes_per_bank) +
                  number("reserved_bytes", trace.bytes_per_bank * trace.banks) +
                  number("dispatches", trace.dispatches) + number("replays", trace.replays) + "\"released\":" +
                  (trace.released ? "true" : "false") + "},";
    }
    return "\"programs\":" + list(programs) + ",\"traces\":" + list(traces);
}

void forget_program_books() {
    std::lock_guard lock(books().mutex);
    books().programs.clear();
    books().chips.clear();
    books().traces.clear();
}

} // namespace standin
