// What a graph capture listens to. Nobody listens; it may forbid.
#include "tt_metal.hpp"

namespace tt::tt_metal {

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

void GraphTracker::track_deallocate(Buffer*) { standin::Entry entry(standin::Role::unplan); }

void GraphTracker::track_allocate_cb(const CoreRangeSet&, std::uint64_t, std::uint64_t, bool, const IDevice*) {
    standin::Entry entry(standin::Role::circular_buffer);
}

} // namespace tt::tt_metal
