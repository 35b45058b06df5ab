// A library that makes a system call which no thread of the daemon may make.

#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int fd)
{
    syscall(SYS_times, 0);
    return (int)syscall(SYS_fdatasync, fd);
}
