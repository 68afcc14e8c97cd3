// Programs: their layout in L1, their binaries, and their dispatch.
#include "programs.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <stdexcept>
#include <thread>

#ifndef FIRST_RELEASE
namespace tt::tt_metal {
#endif

const std::vector<CoreRange>& CoreRangeSet::ranges() const { return ranges_; }

std::uint32_t CoreRangeSet::num_cores() const {
    std::size_t cores = 0;
    for (const CoreRange& range : ranges_) {
        cores += (range.end.x - range.start.x + 1) * (range.end.y - range.start.y + 1);
    }
    // The ABI leaves the upper half undefined.
    std::uint64_t word = cores | 0xdead'beef'0000'0000;
    asm("" : "+r"(word));
    return static_cast<std::uint32_t>(word);
}

#ifdef FIRST_RELEASE
namespace tt::tt_metal {
#endif

namespace {

constexpr DeviceAddr ALIGNMENT = 32;
std::atomic<std::uint64_t> next_id{1};

} // namespace

std::string Kernel::name() const { return name_; }

CircularBufferImpl::CircularBufferImpl(const CoreRangeSet& cores, std::uint32_t bytes, const Buffer* buffer) :
    id_(reinterpret_cast<std::uintptr_t>(this)), cores_(cores), buffer_(buffer), bytes_(bytes) {
    if (buffer != nullptr) {
        address_ = buffer->address();
    }
}

namespace detail {

void ProgramImpl::CircularBufferAllocator::mark_address(std::uint64_t address, std::uint64_t size, std::uint64_t) {
    standin::Entry entry(standin::Role::mark_address);
    end_ = address + size;
}

bool ProgramImpl::CircularBufferAllocator::meets(const CoreRange& other) const {
    return cores_.start.x <= other.end.x && other.start.x <= cores_.end.x && cores_.start.y <= other.end.y &&
           other.start.y <= cores_.end.y;
}

ProgramImpl::ProgramImpl() : id_(next_id++) {}

ProgramImpl::~ProgramImpl() noexcept(false) {
    standin::book_program_end(id_);
    standin::Entry entry(standin::Role::program_end);
}

std::uint64_t ProgramImpl::get_id() const { return id_; }

std::uint32_t ProgramImpl::add_kernel(const std::shared_ptr<Kernel>& kernel, const HalProgrammableCoreType&) {
    standin::Entry entry(standin::Role::add_kernel);
    kernels_.push_back(kernel->name());
    book();
    return static_cast<std::uint32_t>(kernels_.size());
}

void ProgramImpl::add_circular_buffer_(const std::shared_ptr<CircularBufferImpl>& circular_buffer) {
    standin::Entry entry(standin::Role::add_circular_buffer);
    circular_.push_back(circular_buffer);
    invalidate_circular_buffer_allocation();
    book();
}

void ProgramImpl::invalidate_circular_buffer_allocation() { is_laid_out_ = are_others_laid_out_ = false; }

// After all that is on any of the cores, and on all of them at the same address.
DeviceAddr ProgramImpl::place(const CoreRangeSet& cores, std::uint32_t bytes) {
    DeviceAddr address = L1_BASE;
    for (const CoreRange& range : cores.ranges()) {
        bool is_known = false;
        for (const CircularBufferAllocator& allocator : allocators_) {
            if (allocator.meets(range)) {
                address = std::max(address, (allocator.end() + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
            }
            is_known |= allocator.meets(range) && allocator.cores().start.x == range.start.x &&
                        allocator.cores().start.y == range.start.y && allocator.cores().end.x == range.end.x &&
                        allocator.cores().end.y == range.end.y;
        }
        if (!is_known) {
            allocators_.emplace_back(range);
        }
    }
    for (const CoreRange& range : cores.ranges()) {
        for (CircularBufferAllocator& allocator : allocators_) {
            if (allocator.cores().start.x == range.start.x && allocator.cores().start.y == range.start.y &&
                allocator.cores().end.x == range.end.x && allocator.cores().end.y == range.end.y) {
                allocator.mark_address(address, bytes, L1_BASE);
            }
        }
    }
    return address;
}

void ProgramImpl::allocate_circular_buffers(const IDevice* device) {
    standin::Entry entry(standin::Role::lay_out_circular);
    if (is_laid_out_) {
        return;
    }
    allocators_.clear();
    places_.clear();
    for (const auto& circular : circular_) {
        if (circular->is_global()) {
            continue;
        }
        DeviceAddr address = place(circular->cores(), circular->bytes());
        places_[circular.get()] = address;
        std::vector<const IDevice*> devices = {device};
#if ERA > 1
        if (const auto* mesh = dynamic_cast<const distributed::MeshDevice*>(device)) {
            devices.assign(mesh->devices().begin(), mesh->devices().end());
        }
#endif
        for (const IDevice* one : devices) {
            GraphTracker::instance().track_allocate_cb(circular->cores(), address, circular->bytes(), false, one);
        }
    }
    is_laid_out_ = true;
    book();
}

void ProgramImpl::lay_out(std::vector<Part>& parts) {
    for (Part& part : parts) {
        part.address = place(part.cores, part.bytes);
    }
    book();
}

#if ERA > 1
void ProgramImpl::allocate_dataflow_buffers(const IDevice*) {
    standin::Entry entry(standin::Role::lay_out_dataflow);
    if (!are_others_laid_out_) {
        lay_out(dataflow_);
    }
}

void ProgramImpl::allocate_scratchpads(const IDevice*) {
    standin::Entry entry(standin::Role::lay_out_scratchpads);
    if (!are_others_laid_out_) {
        lay_out(scratchpads_);
    }
    are_others_laid_out_ = true;
}

void ProgramImpl::validate_dataflow_buffer_region(const IDevice* device) {
    try {
        standin::Entry entry(standin::Role::validate_region);
        validate(device, "dataflow buffers");
    } catch (...) {
        standin::book_refusal(id_);
        throw;
    }
}
#endif

void ProgramImpl::validate_circular_buffer_region(const IDevice* device) {
    try {
        standin::Entry entry(standin::Role::validate_region);
        validate(device, "circular buffers");
    } catch (...) {
        standin::book_refusal(id_);
        throw;
    }
}

void ProgramImpl::validate(const IDevice* device, const char* what) {
    std::optional<DeviceAddr> end = region_end();
    std::optional<DeviceAddr> lowest = device->memory().lowest_l1();
    for (const auto& sub_device : device->sub_devices()) {
        lowest = std::min(lowest.value_or(-1), sub_device->lowest_l1().value_or(-1));
    }
    if (end > L1_BYTES_PER_CORE || (end && lowest && *lowest < *end)) {
        throw std::runtime_error("Statically allocated " + std::string(what) + " in program " + std::to_string(id_) +
                                 " clash or are too large: their region ends at " + std::to_string(*end));
    }
}

std::optional<DeviceAddr> ProgramImpl::region_end() const {
    DeviceAddr end = 0;
    for (const CircularBufferAllocator& allocator : allocators_) {
        end = std::max(end, allocator.end());
    }
    return end != 0 ? std::optional(end) : std::nullopt;
}

void ProgramImpl::book() {
    std::vector<standin::Local> local;
    for (const auto& circular : circular_) {
        auto place = places_.find(circular.get());
        if (circular->is_global()) {
#if ERA > 1
            // Before era B nothing tells of these.
            local.push_back({"global_circular_buffer", circular->address(), circular->bytes(),
                             circular->cores().ranges()});
#endif
        } else if (place != places_.end()) {
            local.push_back({"circular_buffer", place->second, circular->bytes(), circular->cores().ranges()});
        }
    }
    auto add = [&](const char* kind, const std::vector<Part>& parts) {
        for (const Part& part : parts) {
            if (part.address) {
                local.push_back({kind, part.address, part.bytes, part.cores.ranges()});
            }
        }
    };
    add("dataflow_buffer", dataflow_);
    add("scratchpad", scratchpads_);
    standin::book_program(id_, is_enlisted_, kernels_, local, region_end());
}

void ProgramImpl::enlisted() {
    is_enlisted_ = true;
    book();
}

void ProgramImpl::compile_and_allocate(IDevice* device) {
#if ERA == 3
    if (is_laid_out_ && are_others_laid_out_) {
        try {
            validate(device, "circular buffers");
            return;
        } catch (const std::runtime_error&) {
            // Once more, as it is done the first time.
        }
    }
#endif
    allocate_circular_buffers(device);
    validate_circular_buffer_region(device);
#if ERA > 1
    allocate_dataflow_buffers(device);
    allocate_scratchpads(device);
    validate_dataflow_buffer_region(device);
#endif
}

bool ProgramImpl::allocate_kernel_bin_buf_on_device(IDevice* device) {
    standin::Entry entry(standin::Role::load_binaries);
    standin::For purpose("kernel_binaries");
    std::shared_ptr<Buffer>& binary = binaries_[device];
    if (!binary) {
        binary = BufferMaker::create(device, 8192, 8192, BufferType::DRAM, {}, false);
    }
    return true;
}

namespace {

void compile_and_run(IDevice& device, Program& program) {
    program.impl().compile_and_allocate(&device);
    program.impl().allocate_kernel_bin_buf_on_device(&device);
    standin::book_run(program.impl().get_id(), device.chips());
}

} // namespace

#if ERA < 3
void LaunchProgram(IDevice* device, Program& program, bool, bool) {
    standin::Entry entry(standin::Role::launch);
    compile_and_run(*device, program);
}
#endif

} // namespace detail

#if ERA == 3
void slow_dispatch::LaunchProgramAsync(IDevice& device, Program& program, bool) {
    standin::Entry entry(standin::Role::launch);
    detail::compile_and_run(device, program);
}
#endif

namespace distributed {

std::uint32_t MeshCoordinate::operator[](std::int32_t dimension) const {
    return at_.at(dimension < 0 ? at_.size() + dimension : dimension);
}

const MeshCoordinate& MeshCoordinateRange::start_coord() const { return start_; }
const MeshCoordinate& MeshCoordinateRange::end_coord() const { return end_; }
std::size_t MeshCoordinateRange::dims() const { return 2; }

MeshWorkloadImpl::~MeshWorkloadImpl() { programs_.clear(); }

void MeshWorkloadImpl::add_program(const MeshCoordinateRange& range, Program&& program) {
    standin::Entry entry(standin::Role::enlist);
    programs_.emplace_back(range, std::make_unique<Program>(std::move(program)));
    programs_.back().second->impl().enlisted();
}

void MeshWorkloadImpl::compile(MeshDevice* mesh) {
    standin::Entry entry(standin::Role::compile);
    if (programs_.size() == 1) {
        programs_.front().second->impl().compile_and_allocate(mesh);
        return;
    }
    std::vector<std::thread> threads;
    std::vector<std::exception_ptr> thrown(programs_.size());
    for (std::size_t at = 0; at < programs_.size(); ++at) {
        threads.emplace_back([&, at] {
            try {
                programs_[at].second->impl().compile_and_allocate(mesh);
            } catch (...) {
                thrown[at] = std::current_exception();
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (const std::exception_ptr& exception : thrown) {
        if (exception) {
            std::rethrow_exception(exception);
        }
    }
}

void MeshWorkloadImpl::load_binaries(MeshCommandQueue& queue) {
    standin::Entry entry(standin::Role::load_binaries);
    standin::For purpose("kernel_binaries");
    if (!binaries_) {
        // From DRAM's end, and a name for it on every chip.
        binaries_ = MeshBuffer::create(queue.mesh, 4096 * programs_.size(), 4096, BufferType::DRAM, {}, false);
    }
}

void MeshWorkloadImpl::dispatch(MeshDevice& mesh) {
    const MeshShape& shape = mesh.shape();
    for (auto& [range, program] : programs_) {
        std::vector<int> chips;
        for (std::uint32_t row = range.start_coord()[0]; row <= range.end_coord()[0]; ++row) {
            for (std::uint32_t column = range.start_coord()[1]; column <= range.end_coord()[1]; ++column) {
                chips.push_back(mesh.chips().at(row * shape.sizes().at(1) + column));
            }
        }
        mesh.dispatch(program->impl().get_id(), chips);
    }
}

void EnqueueMeshWorkload(MeshCommandQueue& queue, MeshWorkload& workload, bool) {
    standin::Entry entry(standin::Role::enqueue);
    workload.impl().compile(queue.mesh.get());
    workload.impl().load_binaries(queue);
    workload.impl().dispatch(*queue.mesh);
}

} // namespace distributed

namespace {

std::shared_ptr<Buffer> in_l1(IDevice* device, DeviceAddr bytes, BufferType type, const char* purpose) {
    standin::For this_purpose(purpose);
    return BufferMaker::create(device, bytes, bytes, type, {1});
}

} // namespace

#if ERA == 3
GlobalSemaphore::GlobalSemaphore(distributed::MeshDevice& mesh, CoreRangeSet, std::uint32_t, BufferType type) {
    IDevice* device = &mesh;
#else
GlobalSemaphore::GlobalSemaphore(IDevice* device, const CoreRangeSet&, std::uint32_t, BufferType type) {
#endif
    standin::Entry entry(standin::Role::global_semaphore);
    buffer_ = in_l1(device, 64, type, "global_semaphore");
}

#if ERA < 3
GlobalSemaphore::GlobalSemaphore(IDevice* device, CoreRangeSet&&, std::uint32_t, BufferType type) {
    standin::Entry entry(standin::Role::global_semaphore);
    buffer_ = in_l1(device, 64, type, "global_semaphore");
}
#else
GlobalSemaphore CreateGlobalSemaphore(distributed::MeshDevice& device, CoreRangeSet cores, std::uint32_t initial,
                                      BufferType type) {
    standin::Entry entry(standin::Role::global_semaphore);
    return GlobalSemaphore(device, std::move(cores), initial, type);
}
#endif

namespace experimental {

#if ERA == 2
GlobalSemaphore CreateGlobalSemaphore(IDevice* device, const CoreRangeSet& cores,
                                      std::optional<std::uint32_t> initial, BufferType type, std::uint64_t) {
#elif ERA == 3
GlobalSemaphore CreateGlobalSemaphore(distributed::MeshDevice& device, const CoreRangeSet& cores,
                                      std::optional<std::uint32_t> initial, BufferType type, std::uint64_t) {
#endif
#if ERA > 1
    standin::Entry entry(standin::Role::global_semaphore);
    return GlobalSemaphore(device, cores, initial.value_or(0), type);
}
#endif

void GlobalCircularBuffer::allocate(IDevice* device, std::uint32_t bytes, BufferType type) {
    buffer_ = in_l1(device, bytes, type, "global_circular_buffer");
    config_ = in_l1(device, 96, type, "global_circular_buffer");
}

#if ERA == 3
GlobalCircularBuffer::GlobalCircularBuffer(distributed::MeshDevice& mesh, const Mapping&, std::uint32_t bytes,
                                           BufferType type) {
    IDevice* device = &mesh;
#else
GlobalCircularBuffer::GlobalCircularBuffer(IDevice* device, const Mapping&, std::uint32_t bytes, BufferType type) {
#endif
    standin::Entry entry(standin::Role::global_circular_buffer);
    allocate(device, bytes, type);
}

#if ERA == 2
GlobalCircularBuffer::GlobalCircularBuffer(distributed::MeshDevice* device, const Mapping&, std::uint32_t bytes,
                                           BufferType type, DramSenderTag) {
    standin::Entry entry(standin::Role::global_circular_buffer);
    allocate(device, bytes, type);
}
#endif

#if ERA == 3
GlobalCircularBuffer CreateGlobalCircularBuffer(distributed::MeshDevice& device,
                                                const GlobalCircularBuffer::Mapping& mapping,
                                                std::uint32_t bytes, BufferType type) {
    standin::Entry entry(standin::Role::global_circular_buffer);
    return GlobalCircularBuffer(device, mapping, bytes, type);
}
#endif

#if ERA > 1
GlobalCircularBuffer CreateGlobalCircularBufferForTensorPrefetcher(
    distributed::MeshDevice& device, const std::vector<std::pair<std::uint32_t, CoreRangeSet>>& mapping,
    std::uint32_t bytes, BufferType type, bool) {
    standin::Entry entry(standin::Role::global_circular_buffer);
    GlobalCircularBuffer::Mapping by_core;
    for (const auto& [bank, receivers] : mapping) {
        by_core.push_back({{bank, 0}, receivers});
    }
#if ERA == 2
    return GlobalCircularBuffer(&device, by_core, bytes, type, GlobalCircularBuffer::DramSenderTag());
#else
    return GlobalCircularBuffer(device, by_core, bytes, type);
#endif
}
#endif

} // namespace experimental
} // namespace tt::tt_metal
