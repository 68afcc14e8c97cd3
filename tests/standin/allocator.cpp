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
constexpr DeviceAddr FIRST_ADDRESS = DRAM_BASE;

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
    bool is_dram = buffer->buffer_type() == BufferType::DRAM || buffer->buffer_type() == BufferType::TRACE;
    bool bottom_up = buffer->bottom_up().value_or(is_dram);
    std::lock_guard lock(mutex_);
    if (buffer->sharding().per_core) {
        DeviceAddr address = allocate_per_core(buffer, bytes_per_bank);
        attempt.succeed();
        return address;
    }
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
    if (per_core_.erase(buffer) != 0) {
        standin::book_free(this, buffer->buffer_type(), address, buffer);
        return;
    }
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
    lowest_of_core_.clear();
    per_core_.clear();
    auto make = [&](BufferType type, std::uint32_t banks, DeviceAddr first, DeviceAddr bank_bytes) {
        Space& space = spaces_[static_cast<std::size_t>(type)];
        space = {banks, first, bank_bytes, {}, {}};
        if (bank_bytes != 0) {
            space.free.emplace(first, bank_bytes);
        }
    };
    if (config_.sub_device_l1 != 0) {
        make(BufferType::L1, L1_BANKS, L1_BASE, config_.sub_device_l1);
        return;
    }
    make(BufferType::DRAM, DRAM_BANKS, FIRST_ADDRESS, 1024 * MIB - FIRST_ADDRESS);
    make(BufferType::L1, L1_BANKS, L1_BASE + given_away_, MIB - given_away_);
    make(BufferType::L1_SMALL, L1_BANKS, L1_BASE + MIB, config_.l1_small_size);
    make(BufferType::TRACE, DRAM_BANKS, FIRST_ADDRESS, config_.trace_region_size);
}

DeviceAddr ALLOCATOR::get_base_allocator_addr(const HalMemType& memory) const {
    std::lock_guard lock(mutex_);
    return memory == HalMemType::L1 ? L1_BASE : DRAM_BASE;
}

#ifndef FIRST_RELEASE
AllocatorState ALLOCATOR::extract_state() const {
    std::lock_guard lock(mutex_);
    AllocatorState state;
    for (std::size_t type = 0; type < TYPES; ++type) {
        for (auto [address, bytes] : spaces_[type].taken) {
            state.regions_[static_cast<BufferType>(type)].emplace_back(address, address + bytes);
        }
    }
    return state;
}

void ALLOCATOR::override_state(const AllocatorState& state) {
    standin::Entry entry(standin::Role::override_state);
    reset();
    std::lock_guard lock(mutex_);
    for (const auto& [type, regions] : state.regions_) {
        Space& space = this->space(type);
        for (auto [start, end] : regions) {
            auto free = std::prev(space.free.upper_bound(start));
            auto [free_start, free_bytes] = *free;
            space.free.erase(free);
            if (free_start < start) {
                space.free.emplace(free_start, start - free_start);
            }
            if (free_start + free_bytes > end) {
                space.free.emplace(end, free_start + free_bytes - end);
            }
            space.taken.emplace(start, end - start);
            standin::Block block{type, start, (end - start) * space.banks, end - start, 0};
            block.adopted = true;
            standin::book_allocation(this, config_.chips, block);
        }
    }
}
#endif

void ALLOCATOR::shrink_l1(DeviceAddr bytes) {
    std::lock_guard lock(mutex_);
    Space& space = this->space(BufferType::L1);
    DeviceAddr first = L1_BASE + bytes;
    if (!space.taken.empty() && space.taken.begin()->first < first) {
        throw std::runtime_error("the lowest L1 is not free");
    }
    DeviceAddr end = L1_BASE + MIB;
    if (!space.free.empty() && space.free.begin()->first == space.first) {
        DeviceAddr free_end = space.free.begin()->first + space.free.begin()->second;
        space.free.erase(space.free.begin());
        space.free.emplace(first, free_end - first);
    } else if (first < space.first) {
        space.free.emplace(first, space.first - first);
    }
    space.first = first;
    space.bank_bytes = end - first;
    given_away_ = bytes;
    standin::book_bank_bytes(config_.chips, BufferType::L1, space.bank_bytes);
}

std::optional<DeviceAddr> ALLOCATOR::lowest_l1() const {
    std::lock_guard lock(mutex_);
    const auto& taken = spaces_[static_cast<std::size_t>(BufferType::L1)].taken;
    return taken.empty() ? std::nullopt : std::optional(taken.begin()->first);
}

DeviceAddr ALLOCATOR::allocate_per_core(Buffer* buffer, DeviceAddr bytes) {
    const BufferShardingArgs& sharding = buffer->sharding();
    DeviceAddr of_first = 0;
    for (std::uint32_t core = sharding.first_core; core < sharding.first_core + sharding.cores; ++core) {
        auto lowest = lowest_of_core_.emplace(core, L1_BASE + MIB).first;
        lowest->second -= bytes;
        of_first = core == sharding.first_core ? lowest->second : of_first;
    }
    per_core_.emplace(buffer, bytes);
    standin::Block block{buffer->buffer_type(), of_first, buffer->size(), bytes, buffer->page_size()};
    block.cores = sharding.cores;
    block.object = buffer;
    standin::book_allocation(this, config_.chips, block);
    return of_first;
}

#ifndef FIRST_RELEASE
const std::vector<std::pair<DeviceAddr, DeviceAddr>>& AllocatorState::get_allocated_regions(
    BufferType type) const {
    return regions_.at(type);
}

bool AllocatorState::has_buffer_type(BufferType type) const { return regions_.contains(type); }
#endif

ALLOCATOR::Space& ALLOCATOR::space(BufferType type) {
    if (type == BufferType::SYSTEM_MEMORY) {
        throw std::runtime_error("SYSTEM_MEMORY has no banks");
    }
    return spaces_[static_cast<std::size_t>(type)];
}

BankedAllocator::BankedAllocator(const AllocatorConfig& config) : ALLOCATOR(config) {}
BankedAllocator::~BankedAllocator() noexcept(false) = default;

} // namespace tt::tt_metal
