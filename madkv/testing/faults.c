/* Preloaded into a process: what it asks of the system fails, or is told wrong, when files say so.

   MADKV_FAILING_SYNC  while this file is there, every sync fails with EIO and nothing of it is done: fsync, fdatasync,
                       msync, syncfs, sync_file_range, and each write through a descriptor with O_DSYNC or O_SYNC, since
                       LMDB's page that says what is in force goes that way
   MADKV_CLOCK         eight bytes, a number of seconds in the machine's order: by so much the clock that people set is
                       wrong; they may change at any time. Clocks that only go on are left alone */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *failing;
static const volatile int64_t *shift;
static int (*right_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MADKV_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    failing = getenv("MADKV_FAILING_SYNC");
    if (file >= 0) {
        void *bytes = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
        if (bytes != MAP_FAILED)
            shift = bytes;
        close(file);
    }
    right_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
}

/* --- Syncs ------------------------------------------------------------------------------------------------------ */

static int fails(void) {
    int saved = errno, is = failing && access(failing, F_OK) == 0;
    errno = is ? EIO : saved;
    return is;
}

static int syncs(int fd) { return (fcntl(fd, F_GETFL) & O_DSYNC) != 0; }

int fsync(int fd) { return fails() ? -1 : (int)syscall(SYS_fsync, fd); }

int fdatasync(int fd) { return fails() ? -1 : (int)syscall(SYS_fdatasync, fd); }

int syncfs(int fd) { return fails() ? -1 : (int)syscall(SYS_syncfs, fd); }

int msync(void *address, size_t length, int flags) {
    return (flags & MS_SYNC) && fails() ? -1 : (int)syscall(SYS_msync, address, length, flags);
}

int sync_file_range(int fd, off_t at, off_t length, unsigned flags) {
    return fails() ? -1 : (int)syscall(SYS_sync_file_range, fd, at, length, flags);
}

ssize_t write(int fd, const void *data, size_t length) {
    return syncs(fd) && fails() ? -1 : syscall(SYS_write, fd, data, length);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) {
    return syncs(fd) && fails() ? -1 : syscall(SYS_pwrite64, fd, data, length, at);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t at) { return pwrite(fd, data, length, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return syncs(fd) && fails() ? -1 : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return syncs(fd) && fails() ? -1 : syscall(SYS_pwritev, fd, parts, count, at, 0);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) { return pwritev(fd, parts, count, at); }

/* --- Clocks ----------------------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = right_clock ? right_clock(which, at) : (int)syscall(SYS_clock_gettime, which, at);
    if (!failed && shift && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE || which == CLOCK_TAI))
        at->tv_sec += *shift;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
