/* Says that it is ready, then what signal came, and exits with 40 and the signal's number. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile sig_atomic_t caught;

static void note(int number) { caught = number; }

int main(void) {
    static const int numbers[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    sigset_t all, before;
    sigfillset(&all);
    /* Blocked but while it waits, so that none comes before the wait. */
    sigprocmask(SIG_SETMASK, &all, &before);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action = {.sa_handler = note};
        sigaction(numbers[i], &action, NULL);
    }
    puts("ready");
    fflush(stdout);
    while (!caught) sigsuspend(&before);
    printf("caught %d\n", (int)caught);
    fflush(stdout);
    _exit(40 + caught);
}
