/* A library to preload: every user has the number 4242. */

#include <sys/types.h>

uid_t geteuid(void) { return 4242; }
