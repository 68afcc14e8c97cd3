// One of several ranks, each with chips and buffers of its own: rank R has the chips 2R and 2R+1, and keeps
// R + 2 of 2R + 5 buffers. Prints the runtime's books, and then does what its arguments say:
//
//   mpi       (first) starts MPI before and ends it after, and meets the others in between
//   exit N R  rank R exits with code N
//   kill R F  rank R is killed, once there are the files F
//
// MPI is loaded, not linked, so that its headers are not needed.
#include "program.hpp"

#include <csignal>
#include <cstdlib>
#include <string>
#include <string_view>

#include <dlfcn.h>
#include <unistd.h>

using namespace tt::tt_metal;
using program::check;

namespace {

// A function of Open MPI's.
template <class Function> Function* mpi(const char* name) {
    static void* library = dlopen("libmpi.so.40", RTLD_NOW | RTLD_GLOBAL);
    check(library != nullptr, "Open MPI's library can be loaded");
    void* function = dlsym(library, name);
    check(function != nullptr, name);
    return reinterpret_cast<Function*>(function);
}

void* world() { return mpi<char>("ompi_mpi_comm_world"); }

} // namespace

int main(int count, char** arguments) {
    auto argument = [&](int at) { return std::string_view(at < count ? arguments[at] : ""); };
    const char* variable = std::getenv("OMPI_COMM_WORLD_RANK");
    check(variable != nullptr, "there is a rank");
    int rank = std::atoi(variable);
    bool with_mpi = argument(1) == "mpi";
    if (with_mpi) {
        check(mpi<int(int*, char***)>("MPI_Init")(nullptr, nullptr) == 0, "MPI starts");
        int found = -1;
        mpi<int(void*, int*)>("MPI_Comm_rank")(world(), &found);
        check(found == rank, "MPI's rank is the variable's");
    }
    auto mesh = distributed::MeshDevice::create({2 * rank, 2 * rank + 1});
    std::vector<std::shared_ptr<Buffer>> kept;
    for (int made = 0; made < 2 * rank + 5; ++made) {
        auto buffer = BufferMaker::create(mesh.get(), 4096 * (made + 1), 4096, BufferType::DRAM);
        if (made < rank + 2) {
            kept.push_back(std::move(buffer));
        }
    }
    if (with_mpi) {
        check(mpi<int(void*)>("MPI_Barrier")(world()) == 0, "the ranks meet");
    }
    standin::print_books();
    std::fflush(stdout);
    if (with_mpi) {
        check(mpi<int()>("MPI_Finalize")() == 0, "MPI ends");
    }
    auto here = [&](int at) { return argument(at) == std::to_string(rank); };
    if (argument(1) == "kill" && here(2)) {
        for (int file = 3; file < count; ++file) {
            for (int waited = 0; access(arguments[file], F_OK) != 0; ++waited) {
                check(waited < 30'000, "the files come");
                usleep(1000);
            }
        }
        std::raise(SIGKILL);
    }
    _exit(argument(1) == "exit" && here(3) ? std::atoi(arguments[2]) : 0);
}
