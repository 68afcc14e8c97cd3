// Prints what it sees of itself and of its surroundings, before, while and after it uses the runtime, in
// threads and in a forked child: with ttalloc and without, that must be the same to the letter.
//
//     self [STEPS]
#include "program.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cfenv>
#include <csignal>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xmmintrin.h>

using namespace tt::tt_metal;

extern char** environ;

namespace {

int steps = 2000;
volatile std::sig_atomic_t children_ended;

void on_child(int) { children_ended = children_ended + 1; }

// The names in a folder of numbers, in their order; without the one by which it is read.
std::vector<int> numbers(const char* folder) {
    std::vector<int> found;
    DIR* open = opendir(folder);
    program::check(open != nullptr, folder);
    while (dirent* entry = readdir(open)) {
        int number = std::atoi(entry->d_name);
        if (entry->d_name[0] != '.' && number != dirfd(open)) {
            found.push_back(number);
        }
    }
    closedir(open);
    std::sort(found.begin(), found.end());
    return found;
}

void descriptors() {
    for (int descriptor : numbers("/proc/self/fd")) {
        std::array<char, 4096> target{};
        std::string path = "/proc/self/fd/" + std::to_string(descriptor);
        program::check(readlink(path.c_str(), target.data(), target.size() - 1) >= 0, "a link is read");
        std::printf("descriptor %d: %s, %#x %#x\n", descriptor, target.data(), fcntl(descriptor, F_GETFD),
                    fcntl(descriptor, F_GETFL));
    }
}

void signals() {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    for (int signal = 1; signal < NSIG; ++signal) {
        struct sigaction action {};
        if (sigaction(signal, nullptr, &action) != 0) {
            continue;
        }
        const char* handler = action.sa_handler == SIG_DFL   ? "default"
                              : action.sa_handler == SIG_IGN ? "ignored"
                              : action.sa_handler == on_child ? "ours"
                                                              : "another";
        std::printf("signal %d: %s, flags %#x%s\n", signal, handler, static_cast<unsigned>(action.sa_flags),
                    sigismember(&mask, signal) == 1 ? ", blocked" : "");
    }
    stack_t stack{};
    sigaltstack(nullptr, &stack);
    std::printf("signal stack: %#x, %zu bytes\n", static_cast<unsigned>(stack.ss_flags), stack.ss_size);
}

void limits() {
    for (int limit = 0; limit < RLIM_NLIMITS; ++limit) {
        rlimit value{};
        getrlimit(static_cast<__rlimit_resource>(limit), &value);
        std::printf("limit %d: %zu %zu\n", limit, value.rlim_cur, value.rlim_max);
    }
}

void timers() {
    for (auto which : {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}) {
        itimerval timer{};
        getitimer(which, &timer);
        // What is left of it tells nothing.
        std::printf("timer %d: %s, every %ld s\n", static_cast<int>(which),
                    timer.it_value.tv_sec + timer.it_value.tv_usec != 0 ? "armed" : "unarmed",
                    timer.it_interval.tv_sec);
    }
    std::ifstream file("/proc/self/timers");
    for (std::string line; std::getline(file, line);) {
        std::printf("POSIX timer: %s\n", line.c_str());
    }
}

void settings() {
    std::array<char, 4096> folder{};
    program::check(getcwd(folder.data(), folder.size()) != nullptr, "there is a current folder");
    std::printf("folder: %s\n", folder.data());
    DIR* open = opendir(".");
    std::vector<std::string> names;
    while (dirent* entry = readdir(open)) {
        names.emplace_back(entry->d_name);
    }
    closedir(open);
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
        std::printf("    %s\n", name.c_str());
    }
    mode_t mask = umask(0);
    umask(mask);
    std::printf("umask: %o\n", mask);
    std::array<char, 17> name{};
    int death = 0;
    int reaper = 0;
    prctl(PR_GET_NAME, name.data());
    prctl(PR_GET_PDEATHSIG, &death);
    prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    std::printf("name %s, signal of the parent's death %d, reaper %d, dumpable %d, slack %d, securebits %d\n",
                name.data(), death, reaper, prctl(PR_GET_DUMPABLE), prctl(PR_GET_TIMERSLACK),
                prctl(PR_GET_SECUREBITS));
    cpu_set_t processors;
    sched_getaffinity(0, sizeof processors, &processors);
    std::printf("scheduled %d, niceness %d, %d processors, personality %#x\n", sched_getscheduler(0),
                getpriority(PRIO_PROCESS, 0), CPU_COUNT(&processors),
                static_cast<unsigned>(personality(0xffffffff)));
    std::printf("rounding %d, mxcsr %#x\n", std::fegetround(), _mm_getcsr() & ~_MM_EXCEPT_MASK);
    std::printf("own group %d, own session %d\n", getpgrp() == getpid(), getsid(0) == getpid());
}

void environment() {
    for (char** variable = environ; *variable != nullptr; ++variable) {
        // What ttalloc is started with is no secret.
        if (std::strncmp(*variable, "LD_PRELOAD=", 11) != 0 && std::strncmp(*variable, "TTALLOC", 7) != 0) {
            std::printf("variable %s\n", *variable);
        }
    }
}

void status() {
    constexpr std::array FIELDS = {
        "Umask", "State", "TracerPid", "Uid", "Gid", "FDSize", "Groups", "Kthread", "Threads", "SigPnd",
        "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
        "Seccomp", "Seccomp_filters", "Cpus_allowed", "Mems_allowed", "THP_enabled", "CoreDumping",
    };
    std::ifstream file("/proc/thread-self/status");
    for (std::string line; std::getline(file, line);) {
        std::string field = line.substr(0, line.find(':'));
        if (std::find(FIELDS.begin(), FIELDS.end(), field) != FIELDS.end()) {
            std::printf("status %s\n", line.c_str());
        }
    }
    for (const char* name : {"oom_score_adj", "coredump_filter", "timerslack_ns"}) {
        std::ifstream file(std::string("/proc/self/") + name);
        std::string line;
        std::getline(file, line);
        std::printf("%s %s\n", name, line.c_str());
    }
}

void threads_and_children() {
    std::printf("threads: %zu\n", numbers("/proc/self/task").size());
    std::string children;
    for (int thread : numbers("/proc/self/task")) {
        std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/children");
        std::string line;
        std::getline(file, line);
        children += line;
    }
    std::printf("children: %td, ended and told: %d\n", std::count(children.begin(), children.end(), ' '),
                static_cast<int>(children_ended));
    int status = 0;
    errno = 0;
    pid_t child = waitpid(-1, &status, WNOHANG | __WALL);
    std::printf("waited for: %d, %s\n", child > 0, std::strerror(errno));
}

void look(const char* when) {
    std::printf("-- %s\n", when);
    descriptors();
    signals();
    limits();
    timers();
    settings();
    environment();
    status();
    threads_and_children();
    std::fflush(stdout);
}

// Allocates and frees, and looks at errno all the while.
void work(const std::shared_ptr<distributed::MeshDevice>& mesh) {
    int changed = 0;
    for (int step = 0; step < steps; ++step) {
        errno = 77;
        auto buffer = distributed::MeshBuffer::create(mesh, 4096, 2048, BufferType::DRAM);
        changed += errno != 77;
        errno = 78;
        buffer.reset();
        changed += errno != 78;
    }
    std::printf("errno was changed %d times\n", changed);
}

} // namespace

int main(int count, char** arguments) {
    if (count > 1) {
        steps = std::atoi(arguments[1]);
    }
    // What a program may have set up.
    struct sigaction action {};
    action.sa_handler = on_child;
    action.sa_flags = SA_RESTART;
    sigaction(SIGCHLD, &action, nullptr);
    std::signal(SIGUSR1, SIG_IGN);
    std::signal(SIGPIPE, SIG_IGN);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigaddset(&mask, SIGRTMIN + 3);
    pthread_sigmask(SIG_BLOCK, &mask, nullptr);
    itimerval timer{{100'000, 0}, {100'000, 0}};
    setitimer(ITIMER_REAL, &timer, nullptr);
    umask(027);
    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = std::min<rlim_t>(files.rlim_cur, 200);
    setrlimit(RLIMIT_NOFILE, &files);
    program::check(dup2(STDOUT_FILENO, 77) == 77, "a descriptor can be chosen");
    std::fesetround(FE_UPWARD);

    look("before");
    auto mesh = distributed::MeshDevice::create({0, 1});
    look("open");
    work(mesh);
    look("used");
    std::thread([&] {
        work(mesh);
        look("in a thread");
    }).join();
    int ended = children_ended;
    pid_t child = fork();
    if (child == 0) {
        look("forked");
        auto own = distributed::MeshBuffer::create(mesh, 4096, 2048, BufferType::L1);
        work(mesh);
        look("forked and used");
        _exit(5);
    }
    int status = 0;
    program::check(waitpid(child, &status, 0) == child, "the child can be waited for");
    std::printf("the child ended with %d, told %d times\n", WEXITSTATUS(status), children_ended - ended);
    look("after the child");
    // One that never uses the runtime.
    child = fork();
    if (child == 0) {
        _exit(6);
    }
    program::check(waitpid(child, &status, 0) == child, "the child can be waited for");
    std::printf("the child ended with %d, told %d times\n", WEXITSTATUS(status), children_ended - ended);
    mesh->close();
    mesh.reset();
    look("closed");
    while (wait(&status) > 0) {
        std::printf("a child that is none of ours\n");
    }
    std::printf("at the end: %s\n", std::strerror(errno));
    std::fflush(stdout);
    return 9;
}
