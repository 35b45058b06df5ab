// A disk on which some writes stop until a test lets them go on.
//
// This library is preloaded into the daemon. A write whose data begins with the bytes "STOP" makes the file
// $GATE.entered, and then waits until somebody opens the FIFO $GATE for writing.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static void stop(void)
{
    char path[4096];
    const char *gate = getenv("GATE");

    if (!gate)
        abort();
    snprintf(path, sizeof path, "%s.entered", gate);
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    close(open(gate, O_RDONLY | O_CLOEXEC));
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    ssize_t (*real)(int, const struct iovec *, int, off_t) = dlsym(RTLD_NEXT, "pwritev");

    if (count > 0 && iov[0].iov_len >= 512 && memcmp(iov[0].iov_base, "STOP", 4) == 0)
        stop();
    return real(fd, iov, count, offset);
}

ssize_t pwritev64(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev")));
