// The stand-in's programs: what they lay out in L1, and how they are dispatched.
#pragma once

#include "tt_metal.hpp"

#include <string>

#if ERA == 1 // Its name was another then.
#define CircularBufferImpl CircularBuffer
#endif

namespace tt::tt_metal {

enum class HalProgrammableCoreType { TENSIX, ACTIVE_ETH };

class Kernel {
public:
    explicit Kernel(std::string name) : name_(std::move(name)) {}
    std::string name() const;

private:
    std::string name_;
};

// ttalloc reads its beginning, up to the address.
class CircularBufferImpl : public standin::Recycled {
public:
    // Over `buffer`, if that is given.
    CircularBufferImpl(const CoreRangeSet& cores, std::uint32_t bytes, const Buffer* buffer = nullptr);
    bool is_global() const { return buffer_ != nullptr; }

private:
    std::uintptr_t id_;
    CoreRangeSet cores_;
    const Buffer* buffer_;
    std::uint32_t bytes_;
    std::optional<std::uint32_t> address_;

public:
    const CoreRangeSet& cores() const { return cores_; }
    std::uint32_t bytes() const { return bytes_; }
    std::optional<std::uint32_t> address() const { return address_; }
    void resize(std::uint32_t bytes) { bytes_ = bytes; }
};

namespace detail {

class ProgramImpl : public standin::Recycled {
public:
    // The L1 that a program takes on a rectangle of cores. ttalloc reads its beginning.
    class CircularBufferAllocator {
    public:
        explicit CircularBufferAllocator(const CoreRange& cores) : cores_(cores) {}
        void mark_address(std::uint64_t address, std::uint64_t size, std::uint64_t base);
        const CoreRange& cores() const { return cores_; }
        bool meets(const CoreRange& other) const;
        // One past the last byte; 0 if nothing was marked.
        std::uint64_t end() const { return end_; }

    private:
        CoreRange cores_;
        std::uint64_t end_ = 0;
    };

    ProgramImpl();
    ~ProgramImpl() noexcept(false);
    ProgramImpl(const ProgramImpl&) = delete;
    ProgramImpl& operator=(const ProgramImpl&) = delete;

    std::uint32_t add_kernel(const std::shared_ptr<Kernel>& kernel, const HalProgrammableCoreType& core_type);
    void add_circular_buffer_(const std::shared_ptr<CircularBufferImpl>& circular_buffer);
    void invalidate_circular_buffer_allocation();
    void allocate_circular_buffers(const IDevice* device);
    void validate_circular_buffer_region(const IDevice* device);
#if ERA > 1
    void add_dataflow_buffer(const CoreRangeSet& cores, std::uint32_t bytes) { dataflow_.push_back({cores, bytes}); }
    void add_scratchpad(const CoreRangeSet& cores, std::uint32_t bytes) { scratchpads_.push_back({cores, bytes}); }
    void allocate_dataflow_buffers(const IDevice* device);
    void allocate_scratchpads(const IDevice* device);
    void validate_dataflow_buffer_region(const IDevice* device);
#endif
    bool allocate_kernel_bin_buf_on_device(IDevice* device);
    std::uint64_t get_id() const;

    // Lays out what is not, and checks it; era C doesn't even ask again where all is well.
    void compile_and_allocate(IDevice* device);
    // Its workload has it.
    void enlisted();
    std::optional<DeviceAddr> region_end() const;

private:
    struct Part {
        CoreRangeSet cores;
        std::uint32_t bytes;
        std::optional<DeviceAddr> address = std::nullopt;
    };

    void lay_out(std::vector<Part>& parts);
    DeviceAddr place(const CoreRangeSet& cores, std::uint32_t bytes);
    // `what` goes into the message: of two functions that are the same compilers make one.
    void validate(const IDevice* device, const char* what);
    void book();

    std::uint64_t id_;
    bool is_enlisted_ = false;
    bool is_laid_out_ = false;
    bool are_others_laid_out_ = false;
    std::vector<std::string> kernels_;
    std::vector<std::shared_ptr<CircularBufferImpl>> circular_;
    // Where each of them lies; not of views.
    std::map<const CircularBufferImpl*, DeviceAddr> places_;
    std::vector<Part> dataflow_;
    std::vector<Part> scratchpads_;
    std::vector<CircularBufferAllocator> allocators_;
    std::map<IDevice*, std::shared_ptr<Buffer>> binaries_;
};

} // namespace detail

// Begins with the pointer to its implementation. One that was moved from gets another.
class Program {
public:
    Program() : impl_(new detail::ProgramImpl) {}
    Program(Program&& other) :
        impl_(std::exchange(other.impl_, std::shared_ptr<detail::ProgramImpl>(new detail::ProgramImpl))) {}
    detail::ProgramImpl& impl() { return *impl_; }

private:
    std::shared_ptr<detail::ProgramImpl> impl_;
};

#if ERA < 3
namespace detail {

void LaunchProgram(IDevice* device, Program& program, bool wait_until_cores_done = true,
                   bool force_slow_dispatch = false);

} // namespace detail

inline void launch(IDevice* device, Program& program) { detail::LaunchProgram(device, program); }
#else
namespace slow_dispatch {

void LaunchProgramAsync(IDevice& device, Program& program, bool wait);

} // namespace slow_dispatch

inline void launch(IDevice* device, Program& program) {
    slow_dispatch::LaunchProgramAsync(*device, program, true);
}
#endif

namespace distributed {

class MeshCoordinate {
public:
    MeshCoordinate(std::uint32_t first, std::uint32_t second) : at_{first, second} {}
    std::uint32_t operator[](std::int32_t dimension) const;

private:
    std::vector<std::uint32_t> at_;
};

class MeshCoordinateRange {
public:
    MeshCoordinateRange(const MeshCoordinate& start, const MeshCoordinate& end) : start_(start), end_(end) {}
    const MeshCoordinate& start_coord() const;
    const MeshCoordinate& end_coord() const;
    std::size_t dims() const;

private:
    MeshCoordinate start_;
    MeshCoordinate end_;
};

class MeshCommandQueue {
public:
    explicit MeshCommandQueue(std::shared_ptr<MeshDevice> device) : mesh(std::move(device)) {}
    std::shared_ptr<MeshDevice> mesh;
};

class MeshWorkloadImpl : public standin::Recycled {
public:
    ~MeshWorkloadImpl();
    void add_program(const MeshCoordinateRange& range, Program&& program);
    void compile(MeshDevice* mesh);
    void load_binaries(MeshCommandQueue& queue);
    void dispatch(MeshDevice& mesh);
    Program& program(std::size_t at) { return *programs_.at(at).second; }

private:
    std::vector<std::pair<MeshCoordinateRange, std::unique_ptr<Program>>> programs_;
    std::shared_ptr<MeshBuffer> binaries_;
};

// Begins with the pointer to its implementation.
class MeshWorkload {
public:
    MeshWorkload() : impl_(new MeshWorkloadImpl) {}
    void add_program(const MeshCoordinateRange& range, Program&& program) {
        impl_->add_program(range, std::move(program));
    }
    MeshWorkloadImpl& impl() { return *impl_; }

private:
    std::unique_ptr<MeshWorkloadImpl> impl_;
};

void EnqueueMeshWorkload(MeshCommandQueue& queue, MeshWorkload& workload, bool blocking);

} // namespace distributed

class GlobalSemaphore {
public:
#if ERA == 3
    GlobalSemaphore(distributed::MeshDevice& device, CoreRangeSet cores, std::uint32_t initial,
                    BufferType type = BufferType::L1);
#else
    GlobalSemaphore(IDevice* device, const CoreRangeSet& cores, std::uint32_t initial,
                    BufferType type = BufferType::L1);
    GlobalSemaphore(IDevice* device, CoreRangeSet&& cores, std::uint32_t initial,
                    BufferType type = BufferType::L1);
#endif

private:
    std::shared_ptr<Buffer> buffer_;
};

#if ERA == 3
GlobalSemaphore CreateGlobalSemaphore(distributed::MeshDevice& device, CoreRangeSet cores, std::uint32_t initial,
                                      BufferType type = BufferType::L1);
#endif

namespace experimental {

#if ERA == 2
GlobalSemaphore CreateGlobalSemaphore(IDevice* device, const CoreRangeSet& cores,
                                      std::optional<std::uint32_t> initial, BufferType type,
                                      std::uint64_t address);
#elif ERA == 3
GlobalSemaphore CreateGlobalSemaphore(distributed::MeshDevice& device, const CoreRangeSet& cores,
                                      std::optional<std::uint32_t> initial, BufferType type,
                                      std::uint64_t address);
#endif

class GlobalCircularBuffer {
public:
    using Mapping = std::vector<std::pair<tt::xy_pair, CoreRangeSet>>;
#if ERA == 3
    GlobalCircularBuffer(distributed::MeshDevice& device, const Mapping& mapping, std::uint32_t bytes,
                         BufferType type = BufferType::L1);
#else
    GlobalCircularBuffer(IDevice* device, const Mapping& mapping, std::uint32_t bytes,
                         BufferType type = BufferType::L1);
#endif
#if ERA == 2
    // Filled by cores of DRAM.
    struct DramSenderTag {};
    GlobalCircularBuffer(distributed::MeshDevice* device, const Mapping& mapping, std::uint32_t bytes,
                         BufferType type, DramSenderTag);
#endif
    const Buffer& buffer() const { return *buffer_; }

private:
    void allocate(IDevice* device, std::uint32_t bytes, BufferType type);

    std::shared_ptr<Buffer> buffer_;
    std::shared_ptr<Buffer> config_;
};

#if ERA == 3
GlobalCircularBuffer CreateGlobalCircularBuffer(distributed::MeshDevice& device,
                                                const GlobalCircularBuffer::Mapping& mapping,
                                                std::uint32_t bytes, BufferType type);
#endif
#if ERA > 1
GlobalCircularBuffer CreateGlobalCircularBufferForTensorPrefetcher(
    distributed::MeshDevice& device, const std::vector<std::pair<std::uint32_t, CoreRangeSet>>& mapping,
    std::uint32_t bytes, BufferType type, bool shared);
#endif

} // namespace experimental
} // namespace tt::tt_metal
