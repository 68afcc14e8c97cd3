// Objects and addresses that come back, memory that goes all at once, and buffers that are only names.
#include "program.hpp"

#include <new>
#include <set>
#include <string_view>

#include <unistd.h>

using namespace tt::tt_metal;
using program::check;

namespace {

constexpr DeviceAddr PAGE = 2048;
constexpr DeviceAddr SIZE = 64 * PAGE;
constexpr DeviceAddr L1_SMALL = 32768;
// Every heap block begins with this, so that one that is freed by another than this program's operator
// delete, or freed here and made elsewhere, is noticed.
constexpr std::size_t MARK = 0x5354'414e'4449'4e21;

std::shared_ptr<distributed::MeshBuffer> tensor(const std::shared_ptr<distributed::MeshDevice>& mesh,
                                                BufferType type = BufferType::DRAM) {
    return distributed::MeshBuffer::create(mesh, SIZE, PAGE, type);
}

// A mesh that closes with live buffers, and whose successors have its objects' and buffers' addresses.
void reopen() {
    std::set<const void*> meshes;
    std::set<const void*> allocators;
    std::uint64_t address = 0;
    for (int round = 0; round < 20; ++round) {
        auto mesh = distributed::MeshDevice::create({round % 2, 2}, L1_SMALL);
        auto in_dram = tensor(mesh);
        auto in_l1 = tensor(mesh, BufferType::L1);
        auto semaphore = distributed::MeshBuffer::create(mesh, 64 * 4, 4, BufferType::L1_SMALL);
        tensor(mesh);
        check(address == 0 || address == in_dram->address(), "addresses come back");
        address = in_dram->address();
        meshes.insert(mesh.get());
        allocators.insert(&mesh->memory());
        if (round % 3 != 0) {
            mesh->close();
        }
    }
    check(meshes.size() == 1 && allocators.size() < 20, "objects come back");
}

// A buffer that dies in a graph capture keeps its block, and its object's address goes to the next one.
void leak(const std::shared_ptr<distributed::MeshDevice>& mesh) {
    auto make = [&] { return BufferMaker::create(mesh.get(), SIZE, PAGE, BufferType::DRAM); };
    auto lost = make();
    const void* object = lost.get();
    standin::capture(true);
    lost.reset();
    standin::capture(false);
    auto next = make();
    check(next.get() == object, "a Buffer object comes back");
    // Of the two allocations with one object, this ends the later.
    next.reset();
    next = make();
    check(next.get() == object, "a Buffer object comes back again");
}

// After deallocate_buffers a buffer still believes that it has memory, and frees what is there now.
void stale(const std::shared_ptr<distributed::MeshDevice>& mesh) {
    auto old = BufferMaker::create(mesh.get(), SIZE, PAGE, BufferType::L1);
    mesh->memory().deallocate_buffers();
    auto young = BufferMaker::create(mesh.get(), SIZE, PAGE, BufferType::L1);
    auto after = BufferMaker::create(mesh.get(), 2 * SIZE, PAGE, BufferType::L1);
    check(old->address() == young->address(), "an address comes back");
    old.reset();
    auto youngest = BufferMaker::create(mesh.get(), SIZE, PAGE, BufferType::L1);
    check(youngest->address() == young->address(), "the stale free took effect");
    // This one's memory is gone: let it not be freed a second time.
    standin::capture(true);
    young.reset();
    standin::capture(false);
}

// Buffers that take no memory: views, and names for what lies at an address.
void names(const std::shared_ptr<distributed::MeshDevice>& mesh) {
    IDevice* chip = mesh->devices().front();
    auto one = tensor(mesh);
    auto two = tensor(mesh);
    auto view = view_of(one->backing(), {PAGE, 4 * PAGE});
    auto of_view = view_of(*view, {PAGE, PAGE});
    auto inside = BufferMaker::create(chip, one->address() + 3 * PAGE, PAGE, PAGE, BufferType::DRAM);
    auto whole = BufferMaker::create(mesh.get(), one->address(), SIZE, PAGE, BufferType::DRAM);
    // As for a kernel's binary: from the end of DRAM, then a name for it on every chip.
    auto binary = BufferMaker::create(mesh.get(), 4096, 4096, BufferType::DRAM, {}, false);
    for (Device* device : mesh->devices()) {
        BufferMaker::create(device, binary->address(), 4096, 4096, BufferType::DRAM);
    }
    tensor(mesh);
    // These two lie where nothing is allocated.
    BufferMaker::create(chip, DeviceAddr{900} << 20, SIZE, PAGE, BufferType::DRAM);
    BufferMaker::create(mesh.get(), DeviceAddr{512} << 10, PAGE, PAGE, BufferType::L1);
    // No memory either.
    BufferMaker::create(mesh.get(), 0, PAGE, BufferType::DRAM);
}

} // namespace

// The runtime and ttalloc must both be bound to these.
void* operator new(std::size_t bytes) {
    auto* block = static_cast<std::size_t*>(std::malloc(bytes + 16));
    check(block != nullptr, "the heap has room");
    block[0] = MARK;
    return block + 2;
}

void operator delete(void* pointer) noexcept {
    if (pointer != nullptr) {
        auto* block = static_cast<std::size_t*>(pointer) - 2;
        check(block[0] == MARK, "what is deleted came from new");
        block[0] = 0;
        std::free(block);
    }
}

void operator delete(void* pointer, std::size_t) noexcept { operator delete(pointer); }

int main() {
    reopen();
    auto mesh = distributed::MeshDevice::create_unit_mesh(0, L1_SMALL);
    leak(mesh);
    stale(mesh);
    names(mesh);

    // The legacy API's allocator knows nothing of the mesh's, and gives the same addresses again.
    Device* device = CreateDevice(0, L1_SMALL);
    Device* other = CreateDevice(3, L1_SMALL);
    auto on_mesh = tensor(mesh);
    auto on_chip = BufferMaker::create(device, SIZE, PAGE, BufferType::DRAM);
    auto freed = BufferMaker::create(device, SIZE, PAGE, BufferType::L1);
    auto on_other = BufferMaker::create(other, SIZE, PAGE, BufferType::DRAM);
    check(on_chip->address() == on_other->address(), "two allocators give one address");
    freed.reset();
    CloseDevice(other);
    on_other.reset();

    standin::print_books();
    _exit(0);
}
