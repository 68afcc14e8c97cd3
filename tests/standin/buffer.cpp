// Buffers, and what a tensor has of them.
#include "tt_metal.hpp"

#include <stdexcept>

namespace tt::tt_metal {

Buffer::Buffer(IDevice* device, std::optional<DeviceAddr> address, DeviceAddr size, DeviceAddr page_size,
               BufferType type, const BufferShardingArgs& sharding, std::optional<bool> bottom_up,
               std::optional<SubDeviceId> sub_device) :
    device_(device),
    address_(address.value_or(0)),
    size_(size),
    page_size_(page_size),
    type_(type),
    sharding_(sharding),
    bottom_up_(bottom_up),
    sub_device_(sub_device),
    owns_(!address),
    allocated_(address.has_value()) {}

Buffer::~Buffer() {
    // A device that has closed has taken its memory back.
    bool has_memory = owns_ && allocated_ && size_ != 0 && device_->is_open();
    if (has_memory) {
        GraphTracker::instance().track_deallocate(this);
        if (!GraphTracker::instance().hook_deallocate(this) && !planned_) {
            allocator().deallocate_buffer(this);
        }
    }
    if (planned_) {
        standin::book_unplanned(this);
    }
}

void Buffer::allocate_impl() {
    // A buffer of no size takes no memory.
    if (size_ != 0) {
        planned_ = GraphTracker::instance().hook_allocate(this);
        if (!planned_) {
            address_ = allocator().allocate_buffer(this);
        }
    }
    allocated_ = true;
    if (size_ != 0) {
        GraphTracker::instance().track_allocate(this);
    }
}

ALLOCATOR& Buffer::allocator() const {
    return sub_device_ ? *device_->sub_devices().at(sub_device_->value) : device_->memory();
}

std::optional<std::uint32_t> Buffer::num_cores() const {
    return sharding_.cores != 0 ? std::optional(sharding_.cores) : std::nullopt;
}

#if ERA > 1
bool experimental::per_core_allocation::is_per_core_allocation(const Buffer& buffer) {
    // The upper bytes of a register with a bool are undefined.
    std::uint64_t word = buffer.sharding().per_core ? 0xdead'be01 : 0xdead'be00;
    asm("" : "+r"(word));
    return static_cast<bool>(word & 1);
}
#endif

std::uint32_t Buffer::address() const {
    if (!allocated_) {
        throw std::runtime_error("the buffer is not allocated");
    }
    // The ABI leaves the upper half of a register with a 32-bit result undefined. Make use of that.
    std::uint64_t word = address_ | 0xdead'beef'0000'0000;
    asm("" : "+r"(word));
    return static_cast<std::uint32_t>(word);
}

DeviceAddr Buffer::page_size() const { return page_size_; }

DeviceAddr Buffer::aligned_size_per_bank() const {
    ALLOCATOR& allocator = this->allocator();
    DeviceAddr pages = (size_ + page_size_ - 1) / page_size_;
    DeviceAddr banks = sharding_.cores != 0 ? sharding_.cores : allocator.get_num_banks(type_);
    DeviceAddr alignment = allocator.get_alignment(type_);
    DeviceAddr aligned_page = (page_size_ + alignment - 1) / alignment * alignment;
    return (pages + banks - 1) / banks * aligned_page;
}

#if ERA == 3
IDevice* Buffer::device() const { return device_; }
DeviceAddr Buffer::size() const { return size_; }
BufferType Buffer::buffer_type() const { return type_; }
#endif

std::shared_ptr<Buffer> BufferMaker::create(IDevice* device, DeviceAddr size, DeviceAddr page_size,
                                            BufferType type, const BufferShardingArgs& sharding,
                                            std::optional<bool> bottom_up, std::optional<SubDeviceId> sub_device) {
    standin::Entry entry(standin::Role::create);
    auto buffer = std::make_unique<Buffer>(device, std::nullopt, size, page_size, type, sharding, bottom_up,
                                           sub_device);
    buffer->allocate_impl();
    return buffer;
}

std::shared_ptr<Buffer> BufferMaker::create(IDevice* device, DeviceAddr address, DeviceAddr size,
                                            DeviceAddr page_size, BufferType type,
                                            const BufferShardingArgs& sharding,
                                            std::optional<bool> bottom_up, std::optional<SubDeviceId>) {
    standin::Entry entry(standin::Role::create_at_address);
    return std::make_unique<Buffer>(device, address, size, page_size, type, sharding, bottom_up);
}

#if ERA < 3
std::shared_ptr<Buffer> Buffer::view(const BufferRegion& region) {
    Buffer& buffer = *this;
#else
std::shared_ptr<Buffer> BufferImpl::view(Buffer& buffer, const BufferRegion& region) {
#endif
    standin::Entry entry(standin::Role::view);
    return BufferMaker::create(buffer.device(), buffer.address() + region.offset, region.size,
                               buffer.page_size(), buffer.buffer_type(), {}, buffer.bottom_up(),
                               std::nullopt);
}

namespace distributed {

std::shared_ptr<MeshBuffer> MeshBuffer::create(const std::shared_ptr<MeshDevice>& mesh, DeviceAddr size,
                                               DeviceAddr page_size, BufferType type,
                                               const BufferShardingArgs& sharding,
                                               std::optional<bool> bottom_up,
                                               std::optional<SubDeviceId> sub_device) {
    auto buffer = std::make_shared<MeshBuffer>();
    buffer->mesh_ = mesh;
    buffer->backing_ = BufferMaker::create(mesh.get(), size, page_size, type, sharding, bottom_up, sub_device);
    for (Device* device : mesh->devices()) {
        buffer->on_chips_.push_back(BufferMaker::create(device, buffer->backing_->address(), size,
                                                        page_size, type, sharding));
    }
    return buffer;
}

MeshBuffer::~MeshBuffer() { deallocate(); }

void MeshBuffer::deallocate() { backing_.reset(); }

} // namespace distributed
} // namespace tt::tt_metal
