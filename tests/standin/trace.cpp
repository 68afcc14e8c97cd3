// What a mesh does beside handing out memory: traces, sub-devices, and the order of its chips.
#include "tt_metal.hpp"

#include <atomic>
#include <stdexcept>

namespace tt::tt_metal {

SubDeviceManagerId SubDevices::create(std::size_t count, DeviceAddr l1) {
    managers_.emplace_back(count, l1);
    return {managers_.size() - 1};
}

void SubDevices::load(SubDeviceManagerId manager, ALLOCATOR& memory, const std::vector<int>& chips,
                      std::optional<int> mesh) {
    clear(memory, chips);
    auto [count, l1] = managers_.at(manager.value);
    memory.shrink_l1(l1);
    for (std::size_t at = 0; at < count; ++at) {
        AllocatorConfig config{chips};
        config.sub_device_l1 = l1;
        loaded.push_back(std::make_unique<ALLOCATOR>(config));
        standin::book_owner(loaded.back().get(), mesh);
    }
}

void SubDevices::clear(ALLOCATOR& memory, const std::vector<int>&) {
    for (const auto& allocator : loaded) {
        if (allocator->lowest_l1()) {
            throw std::runtime_error("a sub-device still has buffers");
        }
    }
    end();
    memory.shrink_l1(0);
}

void SubDevices::end() {
    for (const auto& allocator : loaded) {
        allocator->deallocate_buffers();
        allocator->clear();
    }
    loaded.clear();
}

void Device::load_sub_device_manager(SubDeviceManagerId manager) {
    standin::Entry entry(standin::Role::load_sub_devices);
    sub_devices_.load(manager, memory(), {chip_}, std::nullopt);
}

void Device::clear_loaded_sub_device_manager() {
    standin::Entry entry(standin::Role::clear_sub_devices);
    sub_devices_.clear(memory(), {chip_});
}

std::uint32_t Device::l1_size_per_core() const { return L1_BYTES_PER_CORE; }
#if ERA == 1
const std::unique_ptr<Allocator>& Device::allocator() const { return allocator_; }
#else
const std::unique_ptr<AllocatorImpl>& Device::allocator_impl() const { return allocator_; }
#endif

namespace distributed {

std::size_t MeshShape::dims() const { return sizes_.size(); }

std::size_t MeshShape::get_stride(std::size_t dimension) const {
    std::size_t stride = 1;
    for (std::size_t after = dimension + 1; after < sizes_.size(); ++after) {
        stride *= sizes_[after];
    }
    return stride;
}

std::uint32_t MeshDevice::l1_size_per_core() const { return L1_BYTES_PER_CORE; }
const MeshShape& MeshDevice::shape() const { return state().shape; }

void MeshDevice::reshape(const MeshShape& shape) {
    standin::Entry entry(standin::Role::reshape);
    MeshState& state = mutable_state();
    bool was_square = state.shape.sizes() == std::vector<std::uint32_t>{2, 2};
    if (was_square != (shape.sizes() == std::vector<std::uint32_t>{2, 2}) && state.chips.size() == 4) {
        std::swap(state.chips[2], state.chips[3]);
        std::swap(state.devices[2], state.devices[3]);
    }
    state.shape = shape;
}

void MeshDevice::load_sub_device_manager(SubDeviceManagerId manager) {
    standin::Entry entry(standin::Role::load_sub_devices);
    mutable_state().sub_devices.load(manager, memory(), chips(), id());
}

void MeshDevice::clear_loaded_sub_device_manager() {
    standin::Entry entry(standin::Role::clear_sub_devices);
    mutable_state().sub_devices.clear(memory(), chips());
}

void MeshDevice::dispatch(std::uint64_t program, const std::vector<int>& chips) {
    MeshState& state = mutable_state();
    if (state.capturing) {
        state.traces.at(*state.capturing).dispatches.emplace_back(program, chips);
    } else {
        standin::book_run(program, chips);
    }
}

#ifndef FIRST_RELEASE
namespace {

MeshTraceId new_trace() {
    // None that the test programs choose themselves.
    static std::atomic<std::uint32_t> next{100};
    return {next++};
}

} // namespace

MeshTraceId MeshDevice::begin_mesh_trace(std::uint8_t queue) {
    standin::Entry entry(standin::Role::begin_new_trace);
    MeshTraceId trace = new_trace();
    begin_mesh_trace(queue, trace);
    return trace;
}
#endif

void MeshDevice::begin_mesh_trace(std::uint8_t, const MeshTraceId& trace) {
    standin::Entry entry(standin::Role::begin_trace);
    MeshState& state = mutable_state();
    if (state.capturing) {
        throw std::runtime_error("a trace is being captured");
    }
    state.capturing = trace.value;
    state.traces[trace.value] = {standin::book_trace(trace.value, id(), chips()), {}, nullptr};
}

void MeshDevice::end_mesh_trace(std::uint8_t, const MeshTraceId& trace) {
    standin::Entry entry(standin::Role::end_trace);
    MeshState& state = mutable_state();
    if (state.capturing != trace.value) {
        throw std::runtime_error("this trace is not being captured");
    }
    state.capturing.reset();
    MeshTrace& ended = state.traces.at(trace.value);
    standin::For purpose("trace");
    // The mesh is somebody else's, who outlives the trace.
    std::shared_ptr<MeshDevice> mesh(std::shared_ptr<void>(), this);
    constexpr DeviceAddr PAGE = 1024;
    ended.buffer = MeshBuffer::create(mesh, PAGE * 20 * (1 + ended.dispatches.size()), PAGE, BufferType::TRACE);
    DeviceAddr bytes_per_bank = ended.buffer->backing().aligned_size_per_bank();
    standin::book_trace_end(ended.book, ended.dispatches.size(), bytes_per_bank,
                            memory().get_num_banks(BufferType::TRACE));
}

void MeshDevice::replay_mesh_trace(std::uint8_t, const MeshTraceId& trace, bool) {
    standin::Entry entry(standin::Role::replay_trace);
    const MeshTrace& replayed = mutable_state().traces.at(trace.value);
    standin::book_replay(replayed.book);
    for (const auto& [program, chips] : replayed.dispatches) {
        standin::book_run(program, chips);
    }
}

void MeshDevice::release_mesh_trace(const MeshTraceId& trace) {
    standin::Entry entry(standin::Role::release_trace);
    MeshState& state = mutable_state();
    standin::book_trace_release(state.traces.at(trace.value).book);
    state.traces.erase(trace.value);
}

#if ERA == 3
MeshTraceId MeshDevice::begin_mesh_trace(MeshCommandQueue& queue) {
    standin::Entry entry(standin::Role::begin_new_trace);
    MeshTraceId trace = new_trace();
    begin_mesh_trace(queue, trace);
    return trace;
}

void MeshDevice::begin_mesh_trace(MeshCommandQueue&, const MeshTraceId& trace) {
    standin::Entry entry(standin::Role::begin_trace);
    begin_mesh_trace(std::uint8_t{0}, trace);
}

void MeshDevice::end_mesh_trace(MeshCommandQueue&, const MeshTraceId& trace) {
    standin::Entry entry(standin::Role::end_trace);
    end_mesh_trace(std::uint8_t{0}, trace);
}

void MeshDevice::replay_mesh_trace(MeshCommandQueue&, const MeshTraceId& trace, bool blocking) {
    standin::Entry entry(standin::Role::replay_trace);
    replay_mesh_trace(std::uint8_t{0}, trace, blocking);
}
#endif

} // namespace distributed
} // namespace tt::tt_metal
