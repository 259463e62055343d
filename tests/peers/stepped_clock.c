// A wall clock that can be set while a program runs: loaded before libc (LD_PRELOAD), it adds the seconds that stand
// in the file STEPPED_CLOCK, 8 bytes of the machine's own order, to CLOCK_REALTIME. Other clocks are left alone.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef int (*clock_function)(clockid_t, struct timespec *);

int clock_gettime(clockid_t which, struct timespec *time)
{
    static clock_function real;
    static int file = -1;
    if (!real)
        real = (clock_function)dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(which, time);
    if (answer != 0 || which != CLOCK_REALTIME)
        return answer;
    if (file < 0) {
        const char *path = getenv("STEPPED_CLOCK");
        file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    }
    int64_t seconds = 0;
    if (file >= 0 && pread(file, &seconds, sizeof seconds, 0) == sizeof seconds)
        time->tv_sec += seconds;
    return answer;
}
