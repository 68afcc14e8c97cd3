// Who hands out memory: first fit in a list of free blocks.
#include "tt_metal.hpp"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>

namespace tt::tt_metal {

namespace {

constexpr DeviceAddr KIB = 1024;
constexpr DeviceAddr MIB = 1024 * KIB;
constexpr std::uint32_t DRAM_BANKS = 12;
constexpr std::uint32_t L1_BANKS = 64;
constexpr std::uint32_t DRAM_ALIGNMENT = 32;
constexpr std::uint32_t L1_ALIGNMENT = 16;
// The first address in any space: no block lies at 0.
constexpr DeviceAddr FIRST_ADDRESS = 32;

DeviceAddr round_up(DeviceAddr bytes, DeviceAddr unit) { return (bytes + unit - 1) / unit * unit; }

// Counts an allocation that ends in an exception.
class Attempt {
public:
    Attempt(const std::vector<int>& chips, BufferType type) : chips_(chips), type_(type) {}
    ~Attempt() {
        if (!succeeded_) {
            standin::book_failure(chips_, type_);
        }
    }
    void succeed() { succeeded_ = true; }

private:
    const std::vector<int>& chips_;
    BufferType type_;
    bool succeeded_ = false;
};

} // namespace

ALLOCATOR::ALLOCATOR(const AllocatorConfig& config) : config_(config) { reset(); }

ALLOCATOR::~ALLOCATOR() noexcept(false) {
    standin::book_release(this);
    standin::Entry entry(standin::Role::allocator_end);
}

DeviceAddr ALLOCATOR::allocate_buffer(Buffer* buffer) {
    Attempt attempt(config_.chips, buffer->buffer_type());
    standin::Entry entry(standin::Role::allocate);
    // Every free list rounds up to DRAM's alignment, whatever its own type.
    DeviceAddr bytes_per_bank = round_up(buffer->aligned_size_per_bank(), DRAM_ALIGNMENT);
    bool bottom_up = buffer->bottom_up().value_or(true);
    std::lock_guard lock(mutex_);
    Space& space = this->space(buffer->buffer_type());
    auto fits = space.free.end();
    for (auto block = space.free.begin(); block != space.free.end(); ++block) {
        if (block->second >= bytes_per_bank) {
            fits = block;
            if (bottom_up) {
                break;
            }
        }
    }
    if (fits == space.free.end()) {
        throw std::runtime_error("Out of Memory: no " + std::to_string(bytes_per_bank) + " bytes in a bank");
    }
    auto [start, length] = *fits;
    DeviceAddr address = bottom_up ? start : start + length - bytes_per_bank;
    space.free.erase(fits);
    if (length > bytes_per_bank) {
        space.free.emplace(bottom_up ? start + bytes_per_bank : start, length - bytes_per_bank);
    }
    space.taken.emplace(address, bytes_per_bank);
    standin::book_allocation(this, config_.chips, {buffer->buffer_type(), address, buffer->size(),
                                                   bytes_per_bank, buffer->page_size()});
    attempt.succeed();
    return address;
}

void ALLOCATOR::deallocate_buffer(Buffer* buffer) {
    standin::Entry entry(standin::Role::deallocate);
    DeviceAddr address = buffer->address();
    std::lock_guard lock(mutex_);
    Space& space = this->space(buffer->buffer_type());
    auto taken = space.taken.find(address);
    if (taken == space.taken.end()) {
        return;
    }
    auto [start, length] = *taken;
    space.taken.erase(taken);
    standin::book_free(this, buffer->buffer_type(), address);
    auto next = space.free.lower_bound(start);
    if (next != space.free.end() && next->first == start + length) {
        length += next->second;
        next = space.free.erase(next);
    }
    if (next != space.free.begin() && std::prev(next)->first + std::prev(next)->second == start) {
        std::prev(next)->second += length;
    } else {
        space.free.emplace(start, length);
    }
}

void ALLOCATOR::deallocate_buffers() {
    standin::Entry entry(standin::Role::deallocate_all);
    reset();
}

void ALLOCATOR::clear() {
    standin::Entry entry(standin::Role::clear);
    reset();
}

std::uint32_t ALLOCATOR::get_num_banks(const BufferType& type) const {
    std::lock_guard lock(mutex_);
    return const_cast<ALLOCATOR*>(this)->space(type).banks;
}

DeviceAddr ALLOCATOR::get_bank_size(const BufferType& type) const {
    std::lock_guard lock(mutex_);
    return const_cast<ALLOCATOR*>(this)->space(type).bank_bytes;
}

std::uint32_t ALLOCATOR::get_alignment(BufferType type) const {
    std::lock_guard lock(mutex_);
    return type == BufferType::DRAM || type == BufferType::TRACE ? DRAM_ALIGNMENT : L1_ALIGNMENT;
}

Statistics ALLOCATOR::get_statistics(const BufferType& type) const {
    std::lock_guard lock(mutex_);
    const Space& space = const_cast<ALLOCATOR*>(this)->space(type);
    if (space.banks == 0) {
        throw std::runtime_error("there are no banks of this type");
    }
    Statistics statistics;
    statistics.total_allocatable_size_bytes = space.bank_bytes;
    for (const auto& [address, bytes] : space.taken) {
        statistics.total_allocated_bytes += bytes;
    }
    for (const auto& [address, bytes] : space.free) {
        statistics.total_free_bytes += bytes;
        statistics.largest_free_block_bytes = std::max(statistics.largest_free_block_bytes, bytes);
    }
    statistics.total_allocated_bytes += standin::exaggeration();
#if ERA < 3 && !defined(SHORT_STATISTICS)
    // Enough that it is seen if nobody gives it back.
    statistics.largest_free_block_addrs.assign(4096, FIRST_ADDRESS);
#endif
    return statistics;
}

#if ERA > 1
void ALLOCATOR::set_hybrid_device_allocators(const std::vector<ALLOCATOR*>&) {
    standin::Entry entry(standin::Role::hybrid);
    std::lock_guard lock(mutex_);
}
#endif

#if ERA == 3
bool ALLOCATOR::try_begin_hybrid_allocation(const std::vector<ALLOCATOR*>&) {
    standin::Entry entry(standin::Role::hybrid);
    std::lock_guard lock(mutex_);
    return true;
}
#endif

void ALLOCATOR::reset() {
    std::lock_guard lock(mutex_);
    standin::book_release(this);
    auto make = [&](BufferType type, std::uint32_t banks, DeviceAddr bank_bytes) {
        Space& space = spaces_[static_cast<std::size_t>(type)];
        space = {banks, bank_bytes, {}, {}};
        if (bank_bytes != 0) {
            space.free.emplace(FIRST_ADDRESS, bank_bytes);
        }
    };
    make(BufferType::DRAM, DRAM_BANKS, 1024 * MIB - FIRST_ADDRESS);
    make(BufferType::L1, L1_BANKS, MIB);
    make(BufferType::L1_SMALL, L1_BANKS, config_.l1_small_size);
    make(BufferType::TRACE, DRAM_BANKS, config_.trace_region_size);
}

ALLOCATOR::Space& ALLOCATOR::space(BufferType type) {
    if (type == BufferType::SYSTEM_MEMORY) {
        throw std::runtime_error("SYSTEM_MEMORY has no banks");
    }
    return spaces_[static_cast<std::size_t>(type)];
}

BankedAllocator::BankedAllocator(const AllocatorConfig& config) : ALLOCATOR(config) {}
BankedAllocator::~BankedAllocator() noexcept(false) = default;

} // namespace tt::tt_metal
