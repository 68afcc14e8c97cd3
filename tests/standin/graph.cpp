// What a graph capture listens to. Nobody listens; it may forbid.
#include "tt_metal.hpp"

namespace tt::tt_metal {

namespace {

// The real functions hand all of it to whoever listens. What a function ignores, compilers need not pass.
template <typename Value>
void tell_one(const Value& value) {
    asm volatile("" : : "r"(value));
}

template <typename... Values>
void tell(const Values&... values) {
    (tell_one(values), ...);
}

} // namespace

GraphTracker& GraphTracker::instance() {
    static GraphTracker tracker;
    return tracker;
}

bool GraphTracker::hook_allocate(const Buffer* buffer) {
    standin::Entry entry(standin::Role::plan);
    if (!standin::planning()) {
        return false;
    }
    constexpr DeviceAddr ALIGNMENT = 32;
    DeviceAddr bytes_per_bank = (buffer->aligned_size_per_bank() + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    standin::book_planned(buffer, &buffer->allocator(), buffer->device()->chips(),
                          {buffer->buffer_type(), 0, buffer->size(), bytes_per_bank, buffer->page_size()});
    return true;
}

bool GraphTracker::hook_deallocate(Buffer*) { return standin::capturing(); }

void GraphTracker::track_allocate(const Buffer*) {}

void GraphTracker::track_deallocate(Buffer* buffer) {
    standin::Entry entry(standin::Role::unplan);
    tell(buffer);
}

void GraphTracker::track_allocate_cb(const CoreRangeSet& cores, std::uint64_t address, std::uint64_t size,
                                     bool is_globally_allocated, const IDevice* device) {
    standin::Entry entry(standin::Role::circular_buffer);
    tell(&cores, address, size, is_globally_allocated, device);
}

} // namespace tt::tt_metal
