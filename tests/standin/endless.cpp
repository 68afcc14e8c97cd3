// Leaves a child behind that allocates and frees for half a minute. Prints the child's pid and ends.
#include "program.hpp"

#include <cstdio>
#include <unistd.h>

using namespace tt::tt_metal;

int main() {
    auto mesh = distributed::MeshDevice::create({0});
    int pipes[2];
    program::check(pipe(pipes) == 0, "a pipe can be made");
    pid_t child = fork();
    if (child == 0) {
        // The reader of this program's output must not wait for the child.
        close(STDOUT_FILENO);
        close(STDERR_FILENO);
        alarm(30);
        for (long pair = 0;; ++pair) {
            BufferMaker::create(mesh.get(), 4096, 4096, BufferType::DRAM);
            if (pair == 1000) {
                program::check(write(pipes[1], "", 1) == 1, "the pipe takes a byte");
            }
        }
    }
    char byte;
    program::check(read(pipes[0], &byte, 1) == 1, "the child is at work");
    std::printf("%d\n", child);
    std::fflush(stdout);
    _exit(0);
}
