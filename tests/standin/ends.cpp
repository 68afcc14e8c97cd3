// Holds three buffers and ends as it is told, by itself or by way of other processes.
#include "program.hpp"

#include <csignal>
#include <cstring>
#include <stdexcept>
#include <string>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace tt::tt_metal;
using program::check;

namespace {

constexpr DeviceAddr PAGE = 2048;

std::vector<std::shared_ptr<distributed::MeshBuffer>> kept;

void keep(const std::shared_ptr<distributed::MeshDevice>& mesh, int count) {
    for (int one = 0; one < count; ++one) {
        kept.push_back(distributed::MeshBuffer::create(mesh, 4 * PAGE, PAGE, BufferType::DRAM));
    }
}

void say(const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
}

// Takes more stack than there is.
[[gnu::noinline]] int overflow(int depth) {
    volatile char room[4096];
    room[0] = static_cast<char>(depth);
    return overflow(depth + 1) + room[0];
}

// Takes more memory than there is, whatever that is.
[[noreturn]] void eat() {
    constexpr std::size_t BYTES = 1 << 20;
    for (;;) {
        if (void* more = std::malloc(BYTES)) {
            std::memset(more, 1, BYTES);
        }
    }
}

int end(const std::string& way) {
    // A core would only take time.
    rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    if (way == "return") {
        return 11;
    } else if (way == "exit") {
        std::exit(12);
    } else if (way == "_exit") {
        _exit(13);
    } else if (way == "quick_exit") {
        std::quick_exit(14);
    } else if (way == "abort") {
        std::abort();
    } else if (way == "exception") {
        throw std::runtime_error("nobody catches this");
    } else if (way == "overflow") {
        return overflow(0);
    } else if (way == "memory") {
        eat();
    } else if (way == "pause") {
        say("ready");
        for (;;) {
            pause();
        }
    }
    check(false, "the way is known");
    return 1;
}

void exec(const std::vector<std::string>& words) {
    std::vector<char*> arguments;
    for (const std::string& word : words) {
        arguments.push_back(const_cast<char*>(word.c_str()));
    }
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    check(false, "the program is there");
}

// Ends while a child goes on, which makes two more buffers when it may read from the file `path`.
[[noreturn]] void leave_behind(const char* path) {
    int pipes[2];
    check(pipe(pipes) == 0, "a pipe can be made");
    pid_t child = fork();
    if (child == 0) {
        setsid();
        // The reader of this program's output must not wait for the child.
        int nothing = open("/dev/null", O_RDWR);
        for (int stream : {0, 1, 2}) {
            dup2(nothing, stream);
        }
        auto mesh = distributed::MeshDevice::create({0});
        keep(mesh, 1);
        check(write(pipes[1], "", 1) == 1, "the pipe takes a byte");
        char byte;
        int file = open(path, O_RDONLY);
        while (read(file, &byte, 1) > 0) {
        }
        keep(mesh, 2);
        _exit(7);
    }
    char byte;
    check(read(pipes[0], &byte, 1) == 1, "the child is at work");
    say(std::to_string(child));
    _exit(3);
}

// Waits for as many children, which are all there at once. They exit with their numbers.
[[noreturn]] void have_children(int count) {
    int ready[2], go[2];
    check(pipe(ready) == 0 && pipe(go) == 0, "pipes can be made");
    for (int number = 0; number < count; ++number) {
        pid_t child = fork();
        check(child >= 0, "there may be so many processes");
        if (child == 0) {
            close(go[1]);
            kept.clear();
            keep(distributed::MeshDevice::create({0}), 1);
            char byte;
            check(write(ready[1], "", 1) == 1, "the pipe takes a byte");
            check(read(go[0], &byte, 1) == 0, "the parent closes the pipe");
            _exit(number % 100);
        }
    }
    char byte;
    for (int number = 0; number < count; ++number) {
        check(read(ready[0], &byte, 1) == 1, "the children are at work");
    }
    // A little, so that all of them are known before they end.
    usleep(200'000);
    close(go[1]);
    while (wait(nullptr) > 0) {
    }
    _exit(0);
}

} // namespace

int main(int, char** words) {
    std::string what = words[1];
    auto mesh = distributed::MeshDevice::create({0});
    keep(mesh, 3);
    if (what == "end") {
        return end(words[2]);
    } else if (what == "child" || what == "short_child") {
        pid_t child = fork();
        if (child == 0) {
            kept.clear();
            keep(distributed::MeshDevice::create({1}), 2);
            if (what == "child") {
                // Long enough for the launcher to notice it.
                usleep(100'000);
            }
            return end(words[2]);
        }
        int status = 0;
        check(waitpid(child, &status, 0) == child, "the child ends");
        _exit(0);
    } else if (what == "leave") {
        leave_behind(words[2]);
    } else if (what == "children") {
        have_children(std::atoi(words[2]));
    } else if (what == "exec") {
        exec({words[0], "end", "return"});
    } else if (what == "exec_other") {
        exec({"sh", "-c", "read line; exit 5"});
    } else if (what == "steps") {
        // A buffer more for each line.
        say("ready");
        for (int byte = 0; (byte = std::getchar()) != EOF;) {
            if (byte == '\n') {
                keep(mesh, 1);
                say("made");
            }
        }
        _exit(0);
    }
    check(false, "the word is known");
}
