// A disk that loses power: everything that was written to a file and not synced can be undone.
//
// This library is preloaded into the daemon. Before it lets a write through, it appends the data that the write is
// about to replace to the journal that LOSE_JOURNAL names: offset, length, bytes. A sync empties the journal, or fails.
// A write that is stable when it returns (RWF_DSYNC) is not recorded. Playing the journal back in reverse gives the
// disk as a power failure may leave it in the worst case. One lock covers all of this, so that a sync covers exactly
// the writes before it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("LOSE_JOURNAL");
    journal = path ? open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (journal < 0)
        abort();
}

static void put(const void *bytes, size_t len)
{
    if (write(journal, bytes, len) != (ssize_t)len)
        abort();
}

// Saves the data that is about to be replaced.
static void save(int fd, off_t offset, off_t len)
{
    char old[4096];
    int reader;
    char path[64];
    off_t head[2] = {offset, len};
    // The file may be open with O_DIRECT, which would need aligned buffers.
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    reader = open(path, O_RDONLY | O_CLOEXEC);
    if (reader < 0)
        abort();
    put(head, sizeof head);
    while (len > 0) {
        size_t part = len < (off_t)sizeof old ? (size_t)len : sizeof old;
        if (pread(reader, old, part, offset) != (ssize_t)part)
            abort();
        put(old, part);
        offset += part;
        len -= part;
    }
    close(reader);
}

static off_t total(const struct iovec *iov, int count)
{
    off_t len = 0;
    for (int i = 0; i < count; i++)
        len += iov[i].iov_len;
    return len;
}

static int is_disk(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    ssize_t (*real)(int, const struct iovec *, int, off_t, int) = dlsym(RTLD_NEXT, "pwritev2");
    ssize_t done;
    if (!is_disk(fd))
        return real(fd, iov, count, offset, flags);
    pthread_mutex_lock(&lock);
    if (!(flags & RWF_DSYNC))
        save(fd, offset, total(iov, count));
    done = real(fd, iov, count, offset, flags);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return pwritev2(fd, iov, count, offset, 0);
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    int (*real)(int, int, off_t, off_t) = dlsym(RTLD_NEXT, "fallocate");
    struct stat st;
    int result;
    pthread_mutex_lock(&lock);
    // At its start the daemon punches a hole far past the end, where nothing can be lost.
    if (fstat(fd, &st) == 0 && offset + len <= st.st_size)
        save(fd, offset, len);
    result = real(fd, mode, offset, len);
    pthread_mutex_unlock(&lock);
    return result;
}

int fdatasync(int fd)
{
    // While a file of this name exists, nothing gets from the cache to the disk.
    if (access("broken", F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    pthread_mutex_lock(&lock);
    if (is_disk(fd) && ftruncate(journal, 0) != 0)
        abort();
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd)
{
    return fdatasync(fd);
}

ssize_t pwritev64(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev")));
ssize_t pwritev64v2(int, const struct iovec *, int, off_t, int) __attribute__((alias("pwritev2")));
int fallocate64(int, int, off_t, off_t) __attribute__((alias("fallocate")));
