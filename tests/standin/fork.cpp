// A child that frees its copy of what the parent allocated, and allocates for itself.
#include "program.hpp"

#include <sys/wait.h>
#include <unistd.h>

using namespace tt::tt_metal;

int main() {
    auto mesh = distributed::MeshDevice::create({0, 1});
    auto make = [&](DeviceAddr pages) {
        return distributed::MeshBuffer::create(mesh, pages * 2048, 2048, BufferType::DRAM);
    };
    std::vector<std::shared_ptr<distributed::MeshBuffer>> buffers = {make(1), make(20), make(300)};
    pid_t child = fork();
    if (child == 0) {
        standin::forget_books();
        auto early = make(7);
        buffers.clear();
        auto kept = make(50);
        make(1000);
        standin::print_books();
        _exit(0);
    }
    int status = 0;
    program::check(waitpid(child, &status, 0) == child && status == 0, "the child ends well");
    buffers.pop_back();
    standin::print_books();
    _exit(0);
}
