// Shaped like tt-metal's programming example of this name: a mesh of one chip, two matrices of 640 x 640
// bfloat16 in tiles of 2,048 bytes and their product. Nothing is computed.
#include "program.hpp"

using namespace tt::tt_metal;

int main() {
    constexpr DeviceAddr TILE = 2048;
    constexpr DeviceAddr MATRIX = 640 * 640 * 2;
    auto mesh = distributed::MeshDevice::create_unit_mesh(0);
    {
        auto a = distributed::MeshBuffer::create(mesh, MATRIX, TILE, BufferType::DRAM);
        auto b = distributed::MeshBuffer::create(mesh, MATRIX, TILE, BufferType::DRAM);
        auto product = distributed::MeshBuffer::create(mesh, MATRIX, TILE, BufferType::DRAM);
        std::printf("a at %#lx, b at %#lx, product at %#lx\n", a->address(), b->address(),
                    product->address());
    }
    program::check(mesh->close(), "the mesh closes");
    // The hidden parent closes with it.
    mesh.reset();
    standin::print_books();
}
