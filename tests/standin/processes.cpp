// Starts processes in the ways there are, as its first argument says, and prints who used the device:
// a line of `used PID` for each, and `did not PID` for those who did nothing of their own with it.
#include "program.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace tt::tt_metal;
using program::check;

extern char** environ;

namespace {

// Static, so that exit ends them.
std::shared_ptr<distributed::MeshDevice> mesh;
std::vector<std::shared_ptr<distributed::MeshBuffer>> kept;

void say(const std::string& line) {
    std::string whole = line + "\n";
    check(write(1, whole.data(), whole.size()) == static_cast<ssize_t>(whole.size()), "it can print");
}

void keep(int count) {
    for (int one = 0; one < count; ++one) {
        kept.push_back(distributed::MeshBuffer::create(mesh, 2048, 2048, BufferType::DRAM));
    }
}

void use() {
    mesh = distributed::MeshDevice::create({0, 1});
    keep(3);
    say("used " + std::to_string(getpid()));
}

void wait_for(pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) != child) {
        check(errno == EINTR, "a child can be waited for");
    }
    check(status == 0, "a child ends well");
}

template <typename Work> pid_t forked(Work work) {
    pid_t child = fork();
    if (child == 0) {
        work();
        _exit(0);
    }
    check(child > 0, "it can fork");
    return child;
}

// What others may see of this process.
std::string sight() {
    std::ostringstream all;
    DIR* folder = opendir("/proc/self/fd");
    while (const dirent* entry = readdir(folder)) {
        char link[4096] = "";
        std::string path = std::string("/proc/self/fd/") + entry->d_name;
        if (entry->d_name[0] != '.' && std::atoi(entry->d_name) != dirfd(folder) &&
            readlink(path.c_str(), link, sizeof link - 1) > 0) {
            all << entry->d_name << " is " << link << '\n';
        }
    }
    closedir(folder);
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        for (const char* name : {"SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "Threads", "PPid"}) {
            if (line.rfind(name, 0) == 0) {
                all << line << '\n';
            }
        }
    }
    all << "session " << getsid(0) << " group " << getpgid(0) << " mask " << umask(022) << '\n';
    for (char** entry = environ; *entry != nullptr; ++entry) {
        all << *entry << '\n';
    }
    char here[4096];
    all << getcwd(here, sizeof here) << '\n';
    return all.str();
}

std::atomic<int> signals{0};
std::atomic<int> forks{0};

// Looks for what starting a collector might leave behind, or show on the way.
void look() {
    struct sigaction action = {};
    action.sa_handler = [](int) { ++signals; };
    action.sa_flags = SA_RESTART;
    sigaction(SIGCHLD, &action, nullptr);
    sigset_t some;
    sigemptyset(&some);
    sigaddset(&some, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &some, nullptr);
    pthread_atfork([] { ++forks; }, [] { ++forks; }, [] { ++forks; });
    std::atomic<bool> done{false};
    std::atomic<int> seen{0};
    std::thread waiter([&] {
        while (!done) {
            seen += waitpid(-1, nullptr, 0) > 0;
            seen += errno != ECHILD;
        }
    });
    std::string before = sight();
    errno = 77;
    use();
    check(errno == 77, "errno is kept");
    std::string after = sight();
    done = true;
    waiter.join();
    if (before != after) {
        say("before:\n" + before + "after:\n" + after);
    }
    check(before == after, "nothing else has changed");
    check(seen == 0 && signals == 0, "no child was seen");
    check(forks == 0, "no handler of fork was called");
    check(waitpid(-1, nullptr, __WALL) < 0 && errno == ECHILD, "there is no child of any kind");
}

void children() {
    use();
    std::vector<pid_t> silent = {
        forked([] {}),
        // Ends what is static, and closes the device.
        forked([] { std::exit(0); }),
        forked([] { kept.clear(); }),
        forked([] { wait_for(forked([] { std::exit(0); })); }),
    };
    for (pid_t child : silent) {
        wait_for(child);
        say("did not " + std::to_string(child));
    }
    std::vector<pid_t> busy = {
        forked([] {
            keep(1);
            say("used " + std::to_string(getpid()));
        }),
        forked([] {
            kept.clear();
            keep(2);
            say("used " + std::to_string(getpid()));
            std::exit(0);
        }),
        forked([] {
            wait_for(forked([] {
                keep(1);
                say("used " + std::to_string(getpid()));
            }));
        }),
    };
    for (pid_t child : busy) {
        wait_for(child);
    }
}

// Forks on several threads while others allocate.
void threads() {
    use();
    std::atomic<bool> done{false};
    std::thread busy([&] {
        while (!done) {
            auto buffer = distributed::MeshBuffer::create(mesh, 2048, 2048, BufferType::L1);
        }
    });
    std::vector<std::thread> all;
    for (int thread = 0; thread < 4; ++thread) {
        all.emplace_back([] {
            for (int child = 0; child < 5; ++child) {
                // Without the runtime's state, whose locks a fork may leave locked.
                wait_for(forked([] {
                    char name[] = "processes", word[] = "leaf";
                    char* argv[] = {name, word, nullptr};
                    execv("/proc/self/exe", argv);
                    _exit(1);
                }));
            }
        });
    }
    for (std::thread& thread : all) {
        thread.join();
    }
    done = true;
    busy.join();
}

// Starts `leaf` with a cleaned environment.
void cleaned(const std::string& way) {
    use();
    char self[4096] = "";
    check(readlink("/proc/self/exe", self, sizeof self - 1) > 0, "it knows its file");
    char name[] = "processes", word[] = "leaf";
    char* argv[] = {name, word, nullptr};
    char* nothing[] = {nullptr};
    pid_t child = 0;
    if (way == "posix_spawn") {
        check(posix_spawn(&child, self, nullptr, nullptr, argv, nothing) == 0, "it can spawn");
    } else if (way == "vfork") {
        child = vfork();
        if (child == 0) {
            execve(self, argv, nothing);
            _exit(1);
        }
    } else if (way == "clearenv") {
        child = forked([&] {
            clearenv();
            execvp(self, argv);
        });
    } else if (way == "env") {
        child = forked([&] { execlp("env", "env", "-i", self, "leaf", nullptr); });
    } else if (way == "sh") {
        // Two steps: what the first is given it hands on.
        std::string line = std::string("env -i PATH=/usr/bin:/bin sh -c '\"$0\" leaf' ") + self;
        child = forked([&] { execl("/bin/sh", "sh", "-c", line.c_str(), nullptr); });
    } else {
        check(false, "the way is known");
    }
    wait_for(child);
}

// Threads begin with the runtime all at once, each with a device of its own.
void together() {
    constexpr int THREADS = 8;
    std::atomic<int> ready{0};
    std::vector<std::thread> all;
    for (int thread = 0; thread < THREADS; ++thread) {
        all.emplace_back([&] {
            ++ready;
            while (ready < THREADS) {
            }
            auto own = distributed::MeshDevice::create({0, 1});
            for (int one = 0; one < 100; ++one) {
                distributed::MeshBuffer::create(own, 2048, 2048, BufferType::DRAM);
            }
        });
    }
    for (std::thread& thread : all) {
        thread.join();
    }
    say("used " + std::to_string(getpid()));
}

void daemon() {
    use();
    int ready[2];
    check(pipe(ready) == 0, "there is a pipe");
    wait_for(forked([&] {
        setsid();
        forked([&] {
            char byte;
            close(ready[1]);
            // Until the first process is gone.
            while (read(ready[0], &byte, 1) > 0) {
            }
            keep(2);
            say("used " + std::to_string(getpid()));
        });
    }));
}

} // namespace

int main(int argc, char** argv) {
    std::string word = argc > 1 ? argv[1] : "";
    if (word == "leaf") {
        use();
    } else if (word == "look") {
        look();
    } else if (word == "children") {
        children();
    } else if (word == "threads") {
        threads();
    } else if (word == "cleaned" && argc > 2) {
        cleaned(argv[2]);
    } else if (word == "exec") {
        use();
        char name[] = "processes", next[] = "leaf";
        char* arguments[] = {name, next, nullptr};
        execv("/proc/self/exe", arguments);
        check(false, "it can go on as another program");
    } else if (word == "together") {
        together();
    } else if (word == "daemon") {
        daemon();
    } else {
        check(false, "the argument is known");
    }
    std::fflush(stdout);
    _exit(0);
}
