/* Runs `env -0` by the function that is named first, with an environment that is described by the words
   that follow: NAME=VALUE, `null` for a null pointer instead, `many=N` for N entries more, `fail` for a
   program that isn't there. `vfork` and `fork` do it in a child. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static long mappings(void) {
    char line[4096];
    long count = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (fgets(line, sizeof line, maps)) count++;
    fclose(maps);
    return count;
}

static int failed(const char *name) { return printf("%s: %s\n", name, strerrorname_np(errno)), 1; }

int main(int argc, char **argv) {
    const char *name = argv[1], *path = "/usr/bin/env", *file = "env";
    char *program[] = {"env", "-0", "A=1", "B=2", "C=3", "D=4", "E=5", "F=6", NULL};
    char **envp = calloc(argc + 100001, sizeof *envp);
    int count = 0, null = 0, child = -1, code;
    pid_t pid = 0;
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "null")) null = 1;
        else if (!strcmp(argv[i], "fail")) path = "/no/such", file = "no-such-program";
        else if (!strcmp(argv[i], "fork") || !strcmp(argv[i], "vfork")) child = *argv[i] == 'v';
        else if (!strncmp(argv[i], "many=", 5)) {
            for (int n = atoi(argv[i] + 5); n > 0; n--) asprintf(&envp[count++], "M%d=", n);
        } else envp[count++] = argv[i];
    }
    if (null) envp = NULL;
    mappings();
    long before = mappings();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (child == 0) pid = fork();
    if (child == 1) pid = vfork();
    if (pid > 0) {
        waitpid(pid, &code, 0);
        /* Not where the kernel has kept what only an exec that fails gives back. */
        if (path[1] == 'n' && mappings() != before) puts("the memory has changed");
        return WEXITSTATUS(code);
    }
    char **own = environ;
    /* What these find by PATH they find by this process's own, which stays. */
    int uses_own = !strcmp(name, "execv") || !strcmp(name, "execvp") || !strcmp(name, "execl") || !strcmp(name, "execlp");
    if (uses_own) environ = envp;
    errno = 0;
    if (!strcmp(name, "execve")) execve(path, program, envp);
    if (!strcmp(name, "execv")) execv(path, program);
    if (!strcmp(name, "execvp")) execvp(file, program);
    if (!strcmp(name, "execvpe")) execvpe(file, program, envp);
    if (!strcmp(name, "fexecve")) fexecve(fd, program, envp);
    if (!strcmp(name, "execveat")) execveat(AT_FDCWD, path, program, envp, 0);
    if (!strcmp(name, "execl")) execl(path, "env", "-0", "A=1", "B=2", "C=3", "D=4", "E=5", "F=6", NULL);
    if (!strcmp(name, "execlp")) execlp(file, "env", "-0", "A=1", "B=2", "C=3", "D=4", "E=5", "F=6", NULL);
    if (!strcmp(name, "execle")) execle(path, "env", "-0", "A=1", "B=2", "C=3", "D=4", "E=5", "F=6", NULL, envp);
    if (!strncmp(name, "posix_spawn", 11)) {
        int with_path = name[11] == 'p';
        errno = with_path ? posix_spawnp(&pid, file, NULL, NULL, program, envp)
                          : posix_spawn(&pid, path, NULL, NULL, program, envp);
        if (!errno) {
            waitpid(pid, &code, 0);
            if (mappings() != before) puts("the memory has changed");
            fflush(stdout);
            _exit(WEXITSTATUS(code));
        }
    }
    code = errno;
    environ = own;
    if (child != 1 && mappings() != before) puts("the memory has changed");
    errno = code;
    failed(name);
    fflush(stdout);
    _exit(3);
}
