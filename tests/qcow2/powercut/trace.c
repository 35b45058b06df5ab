// A disk that remembers everything that was written to it, in order, so that a test can cut the power at any moment.
//
// This library is preloaded into the daemon. It appends a record to the journal that TRACE_JOURNAL names for each write
// before it is executed, for each hole that is punched, and for the begin and the end of each sync. One lock covers a
// record and its write, so the order of the records is that of the writes. Syncs run without the lock: they cover what
// was recorded before they began. Records of the file that TRACE_DATA names, if it does, have the file number 1, and all
// others 0.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, PUNCH, SYNC_BEGIN, SYNC_END, RESIZE };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static uint64_t syncs;
static ino_t data;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("TRACE_JOURNAL"), *data_path = getenv("TRACE_DATA");
    struct stat st;
    journal = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (journal < 0)
        abort();
    if (data_path && stat(data_path, &st) == 0)
        data = st.st_ino;
}

static uint64_t file_of(int fd)
{
    struct stat st;
    return data && fstat(fd, &st) == 0 && st.st_ino == data;
}

// Appends a record: the kind, the file, two numbers, and data. It is one write, so a killed daemon leaves no half of it.
static void put(uint64_t kind, uint64_t file, uint64_t offset, uint64_t len, const struct iovec *iov, int count)
{
    uint64_t head[4] = {kind, file, offset, len};
    struct iovec all[1025] = {{head, sizeof head}};
    ssize_t total = sizeof head;
    int i;

    if (count > 1024)
        abort();
    for (i = 0; i < count; i++) {
        all[i + 1] = iov[i];
        total += iov[i].iov_len;
    }
    if (writev(journal, all, count + 1) != total)
        abort();
}

static int is_disk(int fd)
{
    struct stat st;
    // Shared memory has no name.
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink > 0;
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    ssize_t (*real)(int, const struct iovec *, int, off_t) = dlsym(RTLD_NEXT, "pwritev");
    uint64_t len = 0;
    ssize_t done;
    int i;

    if (!is_disk(fd))
        return real(fd, iov, count, offset);
    for (i = 0; i < count; i++)
        len += iov[i].iov_len;
    pthread_mutex_lock(&lock);
    put(WRITE, file_of(fd), offset, len, iov, count);
    done = real(fd, iov, count, offset);
    if (done != (ssize_t)len)
        abort();
    pthread_mutex_unlock(&lock);
    return done;
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    int (*real)(int, int, off_t, off_t) = dlsym(RTLD_NEXT, "fallocate");
    int result;
    pthread_mutex_lock(&lock);
    put(PUNCH, file_of(fd), offset, len, NULL, 0);
    result = real(fd, mode, offset, len);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t len)
{
    int (*real)(int, off_t) = dlsym(RTLD_NEXT, "ftruncate");
    int result;
    if (!is_disk(fd))
        return real(fd, len);
    pthread_mutex_lock(&lock);
    put(RESIZE, file_of(fd), len, 0, NULL, 0);
    result = real(fd, len);
    pthread_mutex_unlock(&lock);
    return result;
}

int fdatasync(int fd)
{
    uint64_t number, file = file_of(fd);
    pthread_mutex_lock(&lock);
    number = ++syncs;
    put(SYNC_BEGIN, file, number, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    pthread_mutex_lock(&lock);
    put(SYNC_END, file, number, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd)
{
    return fdatasync(fd);
}

ssize_t pwritev64(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev")));
int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));
int fallocate64(int, int, off_t, off_t) __attribute__((alias("fallocate")));
