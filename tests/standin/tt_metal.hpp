// A stand-in for tt-metal's runtime: its exported names for what ttalloc hooks and calls, and behind them
// an allocator, buffers and devices that behave as the real ones do where that matters. There is no
// hardware and no data. ERA chooses the family of releases, as ttalloc's catalogue of symbols has them;
// FIRST_RELEASE 0.60.1, of era A but for a few names and with less. WITHOUT_NUM_BANKS, WITHOUT_DEVICE and
// WITHOUT_OPTIONAL keep functions from being exported.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <string>
#include <utility>
#include <vector>

#if ERA == 1 // A: class Allocator, Buffer::create, MeshDevice without an implementation class.
#define ALLOCATOR Allocator
#define VIRTUAL // its destructor isn't
#elif ERA == 2 || ERA == 3 // B: class AllocatorImpl. C: BufferImpl::create as well.
#define ALLOCATOR AllocatorImpl
#define VIRTUAL virtual
#else
#error "define ERA as 1, 2 or 3"
#endif

// The real one is too large for a compiler to put it into its callers.
#define LARGE __attribute__((noinline))
#define HIDDEN __attribute__((visibility("hidden")))
#ifdef WITHOUT_OPTIONAL
#define OPTIONAL HIDDEN
#else
#define OPTIONAL
#endif

namespace ttsl {

template <typename T, typename Tag>
struct StrongType {
    T value;
};

#ifdef FIRST_RELEASE
template <typename T, std::size_t Extent = std::dynamic_extent>
class Span {
public:
    template <std::size_t Size>
    Span(T (&array)[Size]) : data_(array), size_(Size) {}
    T* begin() const { return data_; }
    T* end() const { return data_ + size_; }

private:
    T* data_;
    std::size_t size_;
};
#endif

} // namespace ttsl

namespace standin {

// Gives the memory of an object that ended to the next one of its size, so that pointers come back for
// certain, as with any heap they may.
struct Recycled {
    static void* operator new(std::size_t bytes);
    static void operator delete(void* object, std::size_t bytes);
};

// Ends the program where another mutex would wait for ever: when the thread that has it locks it again.
class Mutex {
public:
    void lock();
    void unlock();

private:
    std::mutex mutex_;
    std::atomic<std::thread::id> owner_;
};

} // namespace standin

#ifdef FIRST_RELEASE
namespace tt::umd {
#else
namespace tt {
#endif

struct xy_pair {
    std::size_t x;
    std::size_t y;
};

#ifdef FIRST_RELEASE
} // namespace tt::umd
namespace tt {
using umd::xy_pair;
#endif

} // namespace tt

// In the first release these are in no namespace.
#ifndef FIRST_RELEASE
namespace tt::tt_metal {
#endif

struct CoreRange {
    tt::xy_pair start;
    tt::xy_pair end;
};

class CoreRangeSet {
public:
    explicit CoreRangeSet(std::vector<CoreRange> ranges) : ranges_(std::move(ranges)) {}
    const std::vector<CoreRange>& ranges() const;
    std::uint32_t num_cores() const;

private:
    std::vector<CoreRange> ranges_;
};

#ifndef FIRST_RELEASE
} // namespace tt::tt_metal
#endif

namespace tt {

enum class ARCH { WORMHOLE_B0 = 2, BLACKHOLE = 3 };

namespace tt_metal {

class Buffer;
class IDevice;

using DeviceAddr = std::uint64_t;
struct SubDeviceIdTag {};
using SubDeviceId = ttsl::StrongType<std::uint8_t, SubDeviceIdTag>;
#ifdef FIRST_RELEASE
using BankRemap = ttsl::Span<const std::uint32_t>;
#else
using BankRemap = std::span<const std::uint32_t>;
#endif
struct SubDeviceManagerIdTag {};
using SubDeviceManagerId = ttsl::StrongType<std::uint64_t, SubDeviceManagerIdTag>;

// Where the memory begins that an allocator manages, and what a core has in all.
constexpr DeviceAddr L1_BASE = 105'696;
constexpr DeviceAddr DRAM_BASE = 32;
constexpr std::uint32_t L1_BYTES_PER_CORE = 1464 * 1024;

enum class HalMemType : std::uint8_t { L1, DRAM };

enum class BufferType { DRAM, L1, SYSTEM_MEMORY, L1_SMALL, TRACE };
constexpr std::size_t TYPES = 5;

// How a buffer is spread: over all banks page by page, or over this many cores, perhaps with an address of
// its own on each, which only the allocator of a single chip can give.
struct BufferShardingArgs {
    std::uint32_t cores = 0;
    bool per_core = false;
    std::uint32_t first_core = 0;
};

struct BufferRegion {
    DeviceAddr offset;
    DeviceAddr size;
};

// What an allocator is made for.
struct AllocatorConfig {
    std::vector<int> chips;
    DeviceAddr l1_small_size = 0;
    DeviceAddr trace_region_size = 0;
    // If it is for a sub-device: its L1, the lowest of every core. It has nothing else.
    DeviceAddr sub_device_l1 = 0;
};

#ifndef FIRST_RELEASE
// What is allocated in each type of memory, by the first address and the one after the last.
class AllocatorState {
public:
    const std::vector<std::pair<DeviceAddr, DeviceAddr>>& get_allocated_regions(BufferType type) const;
    bool has_buffer_type(BufferType type) const;

private:
    friend class ALLOCATOR;
    std::map<BufferType, std::vector<std::pair<DeviceAddr, DeviceAddr>>> regions_;
};
#endif

// What an allocator has of a type, in each bank.
struct Statistics {
    std::size_t total_allocatable_size_bytes = 0;
    std::size_t total_allocated_bytes = 0;
    std::size_t total_free_bytes = 0;
    std::size_t largest_free_block_bytes = 0;
#if ERA < 3 && !defined(SHORT_STATISTICS)
    // As in the releases up to 0.68.
    std::vector<std::uint32_t> largest_free_block_addrs;
#endif
};

// Hands out the memory of a device: the same addresses on all of its chips, in every bank of a type.
class ALLOCATOR : public standin::Recycled {
public:
    explicit ALLOCATOR(const AllocatorConfig& config);
    VIRTUAL ~ALLOCATOR() noexcept(false);
    ALLOCATOR(const ALLOCATOR&) = delete;
    ALLOCATOR& operator=(const ALLOCATOR&) = delete;

    // Throws std::runtime_error if there is no room.
    DeviceAddr allocate_buffer(Buffer* buffer);
    // Frees what lies at the buffer's address, whoever has it; nothing, if nothing does.
    void deallocate_buffer(Buffer* buffer);
    void deallocate_buffers();
    void clear();

    // These take the allocator's lock, which is not recursive. The first two throw for SYSTEM_MEMORY.
#ifdef WITHOUT_NUM_BANKS
    HIDDEN
#endif
    std::uint32_t get_num_banks(const BufferType& type) const;
    OPTIONAL DeviceAddr get_bank_size(const BufferType& type) const;
    OPTIONAL std::uint32_t get_alignment(BufferType type) const;
    // Throws for SYSTEM_MEMORY, and for a type of which there are no banks.
#ifdef WITHOUT_STATISTICS
    __attribute__((visibility("hidden")))
#endif
    Statistics get_statistics(const BufferType& type) const;
#if ERA > 1
    void set_hybrid_device_allocators(const std::vector<ALLOCATOR*>& allocators);
#endif
#if ERA == 3
    bool try_begin_hybrid_allocation(const std::vector<ALLOCATOR*>& allocators);
#endif
    DeviceAddr get_base_allocator_addr(const HalMemType& memory) const;

#ifndef FIRST_RELEASE
    AllocatorState extract_state() const;
    // Lets everything go, and takes what another allocator has.
    void override_state(const AllocatorState& state);
#endif
    // Gives the lowest of every core's L1 away, or all of it back; throws if that is taken.
    void shrink_l1(DeviceAddr bytes);
    // The lowest address that is taken in L1, if any is.
    std::optional<DeviceAddr> lowest_l1() const;

private:
    // One type's memory, in each bank.
    struct Space {
        std::uint32_t banks = 0;
        DeviceAddr first = 0;
        DeviceAddr bank_bytes = 0;
        std::map<DeviceAddr, DeviceAddr> free;
        std::map<DeviceAddr, DeviceAddr> taken;
    };

    void reset();
    Space& space(BufferType type);
    // A different address on every core: downwards from L1's end, and never given twice.
    DeviceAddr allocate_per_core(Buffer* buffer, DeviceAddr bytes);

    AllocatorConfig config_;
    mutable standin::Mutex mutex_;
    Space spaces_[TYPES];
    DeviceAddr given_away_ = 0;
    std::map<std::uint32_t, DeviceAddr> lowest_of_core_;
    std::map<const Buffer*, DeviceAddr> per_core_;
};

// Some of the real allocators are of a derived class, whose destructor calls the base's.
class BankedAllocator : public ALLOCATOR {
public:
    explicit BankedAllocator(const AllocatorConfig& config);
    ~BankedAllocator() noexcept(false);
};

// What a chip has.
#if ERA == 1
using DeviceAllocator = ALLOCATOR;
#else
using DeviceAllocator = BankedAllocator;
#endif

class IDevice : public standin::Recycled {
public:
    virtual ~IDevice();
    virtual tt::ARCH arch() const = 0;
    virtual int id() const = 0;
    virtual bool close() = 0;
    virtual bool is_open() const = 0;
    // Throws std::runtime_error if the device is closed.
    virtual ALLOCATOR& memory() const = 0;
    virtual std::vector<int> chips() const = 0;
    // The allocators of its sub-devices.
    virtual const std::vector<std::unique_ptr<ALLOCATOR>>& sub_devices() const = 0;
};

// A device's sub-devices: at most one manager of them is loaded.
class SubDevices {
public:
    // A manager with this many sub-devices, all of which have this much of the lowest L1.
    SubDeviceManagerId create(std::size_t count, DeviceAddr l1);
    void load(SubDeviceManagerId manager, ALLOCATOR& memory, const std::vector<int>& chips, std::optional<int> mesh);
    void clear(ALLOCATOR& memory, const std::vector<int>& chips);
    // As a device does that closes.
    void end();

    std::vector<std::unique_ptr<ALLOCATOR>> loaded;

private:
    std::vector<std::pair<std::size_t, DeviceAddr>> managers_;
};

// A chip, with an allocator of its own that the legacy API uses.
class Device : public IDevice {
public:
    explicit Device(const AllocatorConfig& config);
    ~Device() override;
    tt::ARCH arch() const override;
    int id() const override;
    bool close() override;
    bool is_open() const override { return allocator_ != nullptr; }
    ALLOCATOR& memory() const override;
    std::vector<int> chips() const override { return {chip_}; }
    const std::vector<std::unique_ptr<ALLOCATOR>>& sub_devices() const override { return sub_devices_.loaded; }
    std::uint32_t l1_size_per_core() const;
    SubDeviceManagerId create_sub_device_manager(std::size_t count, DeviceAddr l1) {
        return sub_devices_.create(count, l1);
    }
    void load_sub_device_manager(SubDeviceManagerId manager);
    void clear_loaded_sub_device_manager();
#if ERA == 1
    const std::unique_ptr<Allocator>& allocator() const;
#else
    const std::unique_ptr<AllocatorImpl>& allocator_impl() const;
#endif

private:
    int chip_;
    std::unique_ptr<ALLOCATOR> allocator_;
    SubDevices sub_devices_;
};

// The legacy API. A device is open once per process, whoever opens it.
Device* CreateDevice(int chip, DeviceAddr l1_small_size = 0, DeviceAddr trace_region_size = 0);
void CloseDevice(Device* device);

// Memory on a device: of its own, or a name for some that lies at a given address.
class Buffer : public standin::Recycled {
public:
    Buffer(IDevice* device, std::optional<DeviceAddr> address, DeviceAddr size, DeviceAddr page_size,
           BufferType type, const BufferShardingArgs& sharding, std::optional<bool> bottom_up,
           std::optional<SubDeviceId> sub_device = std::nullopt);
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

#if ERA < 3
    static std::shared_ptr<Buffer> create(
        IDevice* device, DeviceAddr size, DeviceAddr page_size, BufferType type,
        const BufferShardingArgs& sharding = {}, std::optional<bool> bottom_up = std::nullopt,
        std::optional<SubDeviceId> sub_device = std::nullopt);
    static std::shared_ptr<Buffer> create(
        IDevice* device, DeviceAddr address, DeviceAddr size, DeviceAddr page_size, BufferType type,
        const BufferShardingArgs& sharding = {}, std::optional<bool> bottom_up = std::nullopt,
        std::optional<SubDeviceId> sub_device = std::nullopt);
    std::shared_ptr<Buffer> view(const BufferRegion& region);

    IDevice* device() const { return device_; }
    DeviceAddr size() const { return size_; }
    BufferType buffer_type() const { return type_; }
#else
#ifdef WITHOUT_DEVICE
    HIDDEN
#endif
    IDevice* device() const;
    OPTIONAL DeviceAddr size() const;
    BufferType buffer_type() const;
#endif
    // Throws std::runtime_error while nothing is allocated.
    std::uint32_t address() const;
    OPTIONAL DeviceAddr page_size() const;
    DeviceAddr aligned_size_per_bank() const;
    std::optional<bool> bottom_up() const { return bottom_up_; }
    std::optional<std::uint32_t> num_cores() const;
    const BufferShardingArgs& sharding() const { return sharding_; }
    ALLOCATOR& allocator() const;

    void allocate_impl();

private:
    IDevice* device_;
    DeviceAddr address_;
    DeviceAddr size_;
    DeviceAddr page_size_;
    BufferType type_;
    BufferShardingArgs sharding_;
    std::optional<bool> bottom_up_;
    std::optional<SubDeviceId> sub_device_;
    bool owns_;
    bool allocated_;
    // Kept from being allocated, by a capture without dispatch.
    bool planned_ = false;
};

#if ERA > 1
namespace experimental::per_core_allocation {
bool is_per_core_allocation(const Buffer& buffer);
}
#endif

// What a graph capture listens to.
class GraphTracker {
public:
    static GraphTracker& instance();
    // True if the buffer must not be allocated, or not be freed.
    bool hook_allocate(const Buffer* buffer);
    bool hook_deallocate(Buffer* buffer);
    void track_allocate(const Buffer* buffer);
    void track_deallocate(Buffer* buffer);
    void track_allocate_cb(const CoreRangeSet& cores, std::uint64_t address, std::uint64_t size,
                           bool is_globally_allocated, const IDevice* device);
};

#if ERA < 3
using BufferMaker = Buffer;
inline std::shared_ptr<Buffer> view_of(Buffer& buffer, const BufferRegion& region) {
    return buffer.view(region);
}
#else
class BufferImpl {
public:
    static std::shared_ptr<Buffer> create(
        IDevice* device, DeviceAddr size, DeviceAddr page_size, BufferType type,
        const BufferShardingArgs& sharding = {}, std::optional<bool> bottom_up = std::nullopt,
        std::optional<SubDeviceId> sub_device = std::nullopt);
    static std::shared_ptr<Buffer> create(
        IDevice* device, DeviceAddr address, DeviceAddr size, DeviceAddr page_size, BufferType type,
        const BufferShardingArgs& sharding = {}, std::optional<bool> bottom_up = std::nullopt,
        std::optional<SubDeviceId> sub_device = std::nullopt);
    static std::shared_ptr<Buffer> view(Buffer& buffer, const BufferRegion& region);
};

using BufferMaker = BufferImpl;
inline std::shared_ptr<Buffer> view_of(Buffer& buffer, const BufferRegion& region) {
    return BufferImpl::view(buffer, region);
}
#endif

namespace distributed {

class MeshDevice;
class MeshBuffer;
class MeshCommandQueue;

struct MeshTraceIdTag {};
using MeshTraceId = ttsl::StrongType<std::uint32_t, MeshTraceIdTag>;

class MeshShape {
public:
    explicit MeshShape(std::vector<std::uint32_t> sizes) : sizes_(std::move(sizes)) {}
    std::size_t dims() const;
    // How many chips a step in this dimension is.
    std::size_t get_stride(std::size_t dimension) const;
    const std::vector<std::uint32_t>& sizes() const { return sizes_; }

private:
    std::vector<std::uint32_t> sizes_;
};

// A recorded run of programs, by their ids, each on some chips.
struct MeshTrace {
    std::size_t book = 0;
    std::vector<std::pair<std::uint64_t, std::vector<int>>> dispatches;
    std::shared_ptr<MeshBuffer> buffer;
};

// What an open mesh has.
struct MeshState {
    int id = -1;
    std::vector<int> chips;
    std::vector<Device*> devices;
    std::unique_ptr<ALLOCATOR> allocator;
    MeshShape shape{std::vector<std::uint32_t>{1, 1}};
    SubDevices sub_devices;
    std::map<std::uint32_t, MeshTrace> traces;
    std::optional<std::uint32_t> capturing;
};

#if ERA > 1
class MeshDeviceImpl {
public:
    bool initialize_impl(MeshDevice* mesh, std::uint8_t command_queues, std::size_t l1_small_size,
                         std::size_t trace_region_size, std::size_t worker_l1_size,
                         BankRemap l1_bank_remap, bool minimal);
    LARGE bool close_impl(MeshDevice* mesh);

    MeshState state;
};
#endif

class MeshDevice : public IDevice {
public:
    static std::shared_ptr<MeshDevice> create(const std::vector<int>& chips, std::size_t l1_small_size = 0,
                                              std::size_t trace_region_size = 0);
    // A mesh of one chip, and as in the real runtime a hidden parent that opens first.
    static std::shared_ptr<MeshDevice> create_unit_mesh(int chip, std::size_t l1_small_size = 0,
                                                        std::size_t trace_region_size = 0);

    explicit MeshDevice(const std::vector<int>& chips);
    ~MeshDevice() override;
    OPTIONAL tt::ARCH arch() const override;
    OPTIONAL int id() const override;
    LARGE bool close() override;
    ALLOCATOR& memory() const override;
    virtual bool initialize(std::uint8_t command_queues, std::size_t l1_small_size,
                            std::size_t trace_region_size, std::size_t worker_l1_size,
                            BankRemap l1_bank_remap, bool minimal);

    std::vector<int> get_device_ids() const;
    const std::vector<Device*>& devices() const { return state().devices; }
    bool is_open() const override { return state().allocator != nullptr; }
    std::vector<int> chips() const override { return state().chips; }
    const std::vector<std::unique_ptr<ALLOCATOR>>& sub_devices() const override {
        return state().sub_devices.loaded;
    }
    std::uint32_t l1_size_per_core() const;
    const MeshShape& shape() const;
    // Four chips in one row go round the square that they are otherwise.
    void reshape(const MeshShape& shape);
    SubDeviceManagerId create_sub_device_manager(std::size_t count, DeviceAddr l1) {
        return mutable_state().sub_devices.create(count, l1);
    }
    void load_sub_device_manager(SubDeviceManagerId manager);
    void clear_loaded_sub_device_manager();
#ifndef FIRST_RELEASE
    // Of an id that no trace had.
    MeshTraceId begin_mesh_trace(std::uint8_t queue);
#endif
    void begin_mesh_trace(std::uint8_t queue, const MeshTraceId& trace);
    void end_mesh_trace(std::uint8_t queue, const MeshTraceId& trace);
    void replay_mesh_trace(std::uint8_t queue, const MeshTraceId& trace, bool blocking);
    void release_mesh_trace(const MeshTraceId& trace);
#if ERA == 3
    MeshTraceId begin_mesh_trace(MeshCommandQueue& queue);
    void begin_mesh_trace(MeshCommandQueue& queue, const MeshTraceId& trace);
    void end_mesh_trace(MeshCommandQueue& queue, const MeshTraceId& trace);
    void replay_mesh_trace(MeshCommandQueue& queue, const MeshTraceId& trace, bool blocking);
#endif
    // A program is dispatched: it runs on these chips, or is recorded.
    void dispatch(std::uint64_t program, const std::vector<int>& chips);
#if ERA == 1
    OPTIONAL const std::unique_ptr<Allocator>& allocator() const;
#else
    OPTIONAL const std::unique_ptr<AllocatorImpl>& allocator_impl() const;
    MeshDeviceImpl& implementation() { return *impl_; }
#endif

private:
#if ERA == 1
    const MeshState& state() const { return state_; }
    MeshState& mutable_state() { return state_; }
    MeshState state_;
#else
    const MeshState& state() const { return impl_->state; }
    MeshState& mutable_state() { return impl_->state; }
    std::unique_ptr<MeshDeviceImpl> impl_ = std::make_unique<MeshDeviceImpl>();
#endif
    std::shared_ptr<MeshDevice> parent_;
};

// What a tensor has: memory of the mesh, and a name for it on every chip.
class MeshBuffer {
public:
    static std::shared_ptr<MeshBuffer> create(const std::shared_ptr<MeshDevice>& mesh, DeviceAddr size,
                                              DeviceAddr page_size, BufferType type,
                                              const BufferShardingArgs& sharding = {},
                                              std::optional<bool> bottom_up = std::nullopt,
                                              std::optional<SubDeviceId> sub_device = std::nullopt);
    ~MeshBuffer();
    void deallocate();

    DeviceAddr address() const { return backing_->address(); }
    Buffer& backing() const { return *backing_; }
    Buffer& chip_buffer(std::size_t index) const { return *on_chips_.at(index); }

private:
    std::shared_ptr<MeshDevice> mesh_;
    std::shared_ptr<Buffer> backing_;
    std::vector<std::shared_ptr<Buffer>> on_chips_;
};

} // namespace distributed
} // namespace tt_metal
} // namespace tt

// What tests need beside.
namespace standin {

using tt::tt_metal::BufferType;
using tt::tt_metal::DeviceAddr;
#ifndef FIRST_RELEASE
using tt::tt_metal::CoreRange;
#endif

// The functions that ttalloc hooks, by their roles in its catalogue.
enum class Role {
    allocate,
    deallocate,
    deallocate_all,
    clear,
    allocator_end,
    create,
    create_at_address,
    view,
    mesh_open,
    mesh_impl_open,
    mesh_close,
    mesh_impl_close,
    device_close,
    hybrid,
    override_state,
    load_sub_devices,
    clear_sub_devices,
    plan,
    unplan,
    add_kernel,
    lay_out_circular,
    lay_out_dataflow,
    lay_out_scratchpads,
    circular_buffer,
    mark_address,
    add_circular_buffer,
    validate_region,
    enlist,
    enqueue,
    compile,
    launch,
    reshape,
    program_end,
    load_binaries,
    global_semaphore,
    global_circular_buffer,
    begin_new_trace,
    begin_trace,
    end_trace,
    replay_trace,
    release_trace,
};

// The next call of `role` does `action`, which throws, before anything else.
void fail_next(Role role, std::function<void()> action);
// How many of these functions were entered and not left, be it by an exception.
int inside();
// What errno was when one of these functions was last entered on this thread.
int errno_at_entry();
// While this is so, as in a graph capture, a buffer dies without giving its memory back.
void capture(bool on);
// While this is so, as in a graph capture without dispatch, no buffer is allocated either.
void plan(bool on);

// From now on, allocators say that they have given so many bytes per bank more than they have.
void exaggerate(DeviceAddr bytes);

// Prints the runtime's own books as one line of JSON with the fields of ttalloc's report.
void print_books();
// Begins new books, as a forked child does.
void forget_books();

// For the runtime itself.

// Stands at the top of each of these functions.
class Entry {
public:
    explicit Entry(Role role);

private:
    struct Witness {
        Witness();
        ~Witness();
    } witness_;
};

bool capturing();
DeviceAddr exaggeration();
bool planning();

struct Block {
    BufferType type;
    DeviceAddr address;
    DeviceAddr bytes;
    DeviceAddr bytes_per_bank;
    DeviceAddr page_bytes;
    // If it has an address of its own on each core: on how many.
    std::uint32_t cores = 0;
    // Tells blocks apart that have one address.
    const void* object = nullptr;
    // Taken over from another allocator.
    bool adopted = false;
};

// What memory is allocated for on this thread, until this goes. By the report's name.
class For {
public:
    explicit For(const char* purpose);
    ~For();

private:
    const char* before_;
};

// `allocator` is what gave or takes a block; `banks` is of its type.
void book_banks(const std::vector<int>& chips, BufferType type, std::uint32_t banks, DeviceAddr bank_bytes);
void book_allocation(const void* allocator, const std::vector<int>& chips, const Block& block);
void book_failure(const std::vector<int>& chips, BufferType type);
void book_free(const void* allocator, BufferType type, DeviceAddr address, const void* object = nullptr);
// The banks have another size for now.
void book_bank_bytes(const std::vector<int>& chips, BufferType type, DeviceAddr bank_bytes);
// The mesh whose allocator it is; none if it is a single chip's.
void book_owner(const void* allocator, std::optional<int> mesh);
// A buffer that was kept from being allocated, and its end.
void book_planned(const void* buffer, const void* allocator, const std::vector<int>& chips, const Block& block);
void book_unplanned(const void* buffer);

// What a program lays out in L1.
struct Local {
    const char* kind;
    std::optional<DeviceAddr> address;
    DeviceAddr bytes;
    std::vector<CoreRange> ranges;
};

// A program as it now is: how far it reaches into L1, and its id where its workload has told it.
void book_program(std::uint64_t id, bool told, const std::vector<std::string>& kernels,
                  const std::vector<Local>& local, std::optional<DeviceAddr> end);
void book_program_end(std::uint64_t id);
void book_refusal(std::uint64_t id);
void book_run(std::uint64_t id, const std::vector<int>& chips);
std::size_t book_trace(std::uint32_t id, int mesh, const std::vector<int>& chips);
void book_trace_end(std::size_t trace, std::size_t dispatches, DeviceAddr bytes_per_bank, std::uint32_t banks);
void book_replay(std::size_t trace);
void book_trace_release(std::size_t trace);
// The lowest address that any allocator has given of a chip's L1.
std::optional<DeviceAddr> lowest_l1(int chip);
// For print_books.
std::string program_books_of(int chip);
std::string program_books();
void forget_program_books();
void book_release(const void* allocator);
void book_open(const std::vector<int>& chips);
void book_close(const void* allocator, const std::vector<int>& chips);

} // namespace standin
