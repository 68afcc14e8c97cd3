// Chips and meshes of them.
#include "tt_metal.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace tt::tt_metal {

namespace {

// The chips that are open, and for how many meshes and callers.
struct Pool {
    std::mutex mutex;
    std::map<int, std::pair<Device*, int>> open;
    int next_mesh = 0;
};

// Never destroyed: devices may be used until the process ends.
Pool& pool() {
    static Pool& pool = *new Pool;
    return pool;
}

Device* acquire(int chip, const AllocatorConfig& config) {
    std::lock_guard lock(pool().mutex);
    auto& [device, users] = pool().open[chip];
    if (users == 0) {
        device = new Device({{chip}, config.l1_small_size, config.trace_region_size});
    }
    ++users;
    return device;
}

void release(Device* device) {
    std::unique_lock lock(pool().mutex);
    auto entry = pool().open.find(device->id());
    if (--entry->second.second == 0) {
        pool().open.erase(entry);
        lock.unlock();
        device->close();
        delete device;
    }
}

void book_capacity(const ALLOCATOR& allocator, const std::vector<int>& chips) {
    for (BufferType type : {BufferType::DRAM, BufferType::L1, BufferType::L1_SMALL, BufferType::TRACE}) {
        standin::book_banks(chips, type, allocator.get_num_banks(type), allocator.get_bank_size(type));
    }
}

} // namespace

IDevice::~IDevice() = default;

Device::Device(const AllocatorConfig& config) :
    chip_(config.chips.front()), allocator_(std::make_unique<DeviceAllocator>(config)) {
    standin::book_owner(allocator_.get(), std::nullopt);
}

Device::~Device() = default;
tt::ARCH Device::arch() const { return tt::ARCH::WORMHOLE_B0; }
int Device::id() const { return chip_; }

ALLOCATOR& Device::memory() const {
    if (!allocator_) {
        throw std::runtime_error("the device is closed");
    }
    return *allocator_;
}

bool Device::close() {
    standin::Entry entry(standin::Role::device_close);
    if (!allocator_) {
        return false;
    }
    standin::book_close(allocator_.get(), {chip_});
    sub_devices_.end();
    // What is still allocated goes with the allocator, without another word.
    allocator_.reset();
    return true;
}

Device* CreateDevice(int chip, DeviceAddr l1_small_size, DeviceAddr trace_region_size) {
    Device* device = acquire(chip, {{chip}, l1_small_size, trace_region_size});
    book_capacity(device->memory(), {chip});
    standin::book_open({chip});
    return device;
}

void CloseDevice(Device* device) { release(device); }

namespace distributed {

namespace {

// What meshes are opened with: distinct values, so that an argument that went astray is seen.
constexpr std::uint8_t COMMAND_QUEUES = 2;
constexpr std::size_t WORKER_L1_SIZE = 1'234'567;
constexpr std::uint32_t L1_BANK_REMAP[] = {3, 1, 2};
constexpr bool MINIMAL = true;

void check_arguments(std::uint8_t command_queues, std::size_t worker_l1_size,
                     BankRemap l1_bank_remap, bool minimal) {
    if (command_queues != COMMAND_QUEUES || worker_l1_size != WORKER_L1_SIZE || !minimal ||
        !std::ranges::equal(l1_bank_remap, L1_BANK_REMAP)) {
        throw std::invalid_argument("the mesh was not opened with what was asked for");
    }
}

bool open(MeshState& state, std::size_t l1_small_size, std::size_t trace_region_size) {
    if (state.allocator) {
        return false;
    }
    AllocatorConfig config{state.chips, l1_small_size, trace_region_size};
    // The real runtime tries its configuration out like this too.
    ALLOCATOR trial(config);
    for (int chip : state.chips) {
        state.devices.push_back(acquire(chip, config));
    }
#if ERA == 1
    state.allocator = std::make_unique<ALLOCATOR>(config);
    BankedAllocator another(config);
#else
    state.allocator = std::make_unique<BankedAllocator>(config);
#endif
    standin::book_owner(state.allocator.get(), state.id);
    book_capacity(*state.allocator, state.chips);
    standin::book_open(state.chips);
    return true;
}

bool close(MeshState& state) {
    if (!state.allocator) {
        return false;
    }
    standin::book_close(state.allocator.get(), state.chips);
    state.capturing.reset();
    // Their memory goes with the allocator.
    auto traces = std::exchange(state.traces, {});
    state.sub_devices.end();
    state.allocator->deallocate_buffers();
    state.allocator->clear();
    state.allocator.reset();
    for (Device* device : std::exchange(state.devices, {})) {
        release(device);
    }
    return true;
}

MeshState new_state(const std::vector<int>& chips) {
    std::lock_guard lock(pool().mutex);
    MeshState state;
    state.id = pool().next_mesh++;
    state.chips = chips;
    auto count = static_cast<std::uint32_t>(chips.size());
    using Sizes = std::vector<std::uint32_t>;
    state.shape = MeshShape(count == 4 ? Sizes{2, 2} : Sizes{1, count});
    return state;
}

} // namespace

#if ERA == 1

MeshDevice::MeshDevice(const std::vector<int>& chips) : state_(new_state(chips)) {}
MeshDevice::~MeshDevice() { MeshDevice::close(); }

bool MeshDevice::initialize(std::uint8_t command_queues, std::size_t l1_small_size,
                            std::size_t trace_region_size, std::size_t worker_l1_size,
                            BankRemap l1_bank_remap, bool minimal) {
    standin::Entry entry(standin::Role::mesh_open);
    check_arguments(command_queues, worker_l1_size, l1_bank_remap, minimal);
    return open(state_, l1_small_size, trace_region_size);
}

bool MeshDevice::close() {
    standin::Entry entry(standin::Role::mesh_close);
    return distributed::close(state_);
}

const std::unique_ptr<Allocator>& MeshDevice::allocator() const { return state_.allocator; }

#else

namespace {

// The real functions use their mesh. What a function ignores, compilers need not pass.
void use([[maybe_unused]] const MeshDevice* mesh) {
#ifndef IGNORES_ITS_MESH
    if (mesh == nullptr) {
        throw std::invalid_argument("there is no mesh");
    }
#endif
}

} // namespace

bool MeshDeviceImpl::initialize_impl(MeshDevice* mesh, std::uint8_t command_queues, std::size_t l1_small_size,
                                     std::size_t trace_region_size, std::size_t worker_l1_size,
                                     BankRemap l1_bank_remap, bool minimal) {
    standin::Entry entry(standin::Role::mesh_impl_open);
    use(mesh);
    check_arguments(command_queues, worker_l1_size, l1_bank_remap, minimal);
    return open(state, l1_small_size, trace_region_size);
}

bool MeshDeviceImpl::close_impl(MeshDevice* mesh) {
    standin::Entry entry(standin::Role::mesh_impl_close);
    use(mesh);
    return distributed::close(state);
}

MeshDevice::MeshDevice(const std::vector<int>& chips) { impl_->state = new_state(chips); }
MeshDevice::~MeshDevice() { impl_->close_impl(this); }

bool MeshDevice::initialize(std::uint8_t command_queues, std::size_t l1_small_size,
                            std::size_t trace_region_size, std::size_t worker_l1_size,
                            BankRemap l1_bank_remap, bool minimal) {
    standin::Entry entry(standin::Role::mesh_open);
    return impl_->initialize_impl(this, command_queues, l1_small_size, trace_region_size, worker_l1_size,
                                  l1_bank_remap, minimal);
}

bool MeshDevice::close() {
    standin::Entry entry(standin::Role::mesh_close);
    return impl_->close_impl(this);
}

const std::unique_ptr<AllocatorImpl>& MeshDevice::allocator_impl() const { return impl_->state.allocator; }

#endif

tt::ARCH MeshDevice::arch() const { return tt::ARCH::WORMHOLE_B0; }
int MeshDevice::id() const { return state().id; }
std::vector<int> MeshDevice::get_device_ids() const { return state().chips; }

ALLOCATOR& MeshDevice::memory() const {
    if (!state().allocator) {
        throw std::runtime_error("the mesh is closed");
    }
    return *state().allocator;
}

std::shared_ptr<MeshDevice> MeshDevice::create(const std::vector<int>& chips, std::size_t l1_small_size,
                                               std::size_t trace_region_size) {
    std::shared_ptr<MeshDevice> mesh(new MeshDevice(chips));
#if ERA == 3
    // Most releases enter one level down.
    mesh->impl_->initialize_impl(mesh.get(), COMMAND_QUEUES, l1_small_size, trace_region_size,
                                 WORKER_L1_SIZE, L1_BANK_REMAP, MINIMAL);
#else
    mesh->initialize(COMMAND_QUEUES, l1_small_size, trace_region_size, WORKER_L1_SIZE, L1_BANK_REMAP,
                     MINIMAL);
#endif
    return mesh;
}

std::shared_ptr<MeshDevice> MeshDevice::create_unit_mesh(int chip, std::size_t l1_small_size,
                                                         std::size_t trace_region_size) {
    auto parent = create({chip}, l1_small_size, trace_region_size);
    auto mesh = create({chip}, l1_small_size, trace_region_size);
    mesh->parent_ = parent;
    return mesh;
}

} // namespace distributed
} // namespace tt::tt_metal
