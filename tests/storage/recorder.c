/* Preloaded into a process: records what it does to one file, and makes one sync of it fail.

   MADKV_DATA_FILE   the file
   MADKV_RECORDING   where the record goes; not recorded without it
   MADKV_FAIL_SYNC   the n-th sync of the file fails with EIO, and so does each one after it. A write through a
                     descriptor with O_DSYNC or O_SYNC is a sync too: LMDB's page that says what is in force goes that way
   MADKV_FAIL_WRITES with it, a write that fails in that way has reached the file all the same

   A record: type (1 byte), whether it is synced by itself (1), offset or length (8), bytes that follow (8), those.
   Types: w a write, t the file's length, s a sync. The system is called directly, so that nothing is recorded twice. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct __attribute__((packed)) event {
    char type;
    uint8_t durable;
    uint64_t at, length;
};

static int recording = -1;
static long syncs, failing;
static int failing_writes;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MADKV_RECORDING"), *nth = getenv("MADKV_FAIL_SYNC");
    if (path)
        recording = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    failing = nth ? atol(nth) : 0;
    failing_writes = getenv("MADKV_FAIL_WRITES") != NULL;
}

static int is_data(const struct stat *found) {
    const char *path = getenv("MADKV_DATA_FILE");
    struct stat data;
    return path && stat(path, &data) == 0 && data.st_dev == found->st_dev && data.st_ino == found->st_ino;
}

static int is_data_fd(int fd) {
    int saved = errno;
    struct stat found;
    int is = fstat(fd, &found) == 0 && S_ISREG(found.st_mode) && is_data(&found);
    errno = saved;
    return is;
}

static void put(const void *data, size_t length) {
    int saved = errno;
    while (length > 0) {
        ssize_t done = syscall(SYS_write, recording, data, length);
        if (done <= 0)
            abort(); /* a recording with holes would prove nothing */
        data = (const char *)data + done;
        length -= done;
    }
    errno = saved;
}

static void note(char type, int durable, uint64_t at, uint64_t length) {
    struct event event = {type, durable, at, length};
    if (recording >= 0)
        put(&event, sizeof event);
}

static void note_write(int durable, const struct iovec *parts, int count, off_t at, ssize_t done) {
    if (recording < 0 || done <= 0)
        return;
    note('w', durable, at, done);
    for (int i = 0; i < count && done > 0; i++) {
        size_t part = parts[i].iov_len < (size_t)done ? parts[i].iov_len : (size_t)done;
        put(parts[i].iov_base, part);
        done -= part;
    }
}

static int sync_fails(void) { return ++syncs >= failing && failing > 0; }

static ssize_t write_parts(int fd, const struct iovec *parts, int count, off_t at, int moves) {
    if (!is_data_fd(fd))
        return moves ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
    int durable = (fcntl(fd, F_GETFL) & O_DSYNC) != 0;
    int fails = durable && sync_fails();
    if (moves)
        at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = -1;
    if (!fails || failing_writes) {
        done = moves ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
        note_write(durable && !fails, parts, count, at, done);
    }
    if (fails) {
        errno = EIO;
        return -1;
    }
    return done;
}

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec part = {(void *)data, length};
    return is_data_fd(fd) ? write_parts(fd, &part, 1, 0, 1) : syscall(SYS_write, fd, data, length);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) {
    struct iovec part = {(void *)data, length};
    return is_data_fd(fd) ? write_parts(fd, &part, 1, at, 0) : syscall(SYS_pwrite64, fd, data, length, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) { return write_parts(fd, parts, count, 0, 1); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return write_parts(fd, parts, count, at, 0); }

ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));
ssize_t pwritev64(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev")));

int ftruncate(int fd, off_t length) {
    int result = syscall(SYS_ftruncate, fd, length);
    if (result == 0 && is_data_fd(fd))
        note('t', 0, length, 0);
    return result;
}

int truncate(const char *path, off_t length) {
    int result = syscall(SYS_truncate, path, length);
    struct stat found;
    if (result == 0 && stat(path, &found) == 0 && is_data(&found))
        note('t', 0, length, 0);
    return result;
}

int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));
int truncate64(const char *, off_t) __attribute__((alias("truncate")));

static int sync_fd(int fd, long call) {
    if (!is_data_fd(fd))
        return syscall(call, fd);
    if (sync_fails()) {
        errno = EIO;
        return -1;
    }
    int result = syscall(call, fd);
    if (result == 0)
        note('s', 0, 0, 0);
    return result;
}

int fsync(int fd) { return sync_fd(fd, SYS_fsync); }

int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

/* LMDB calls it only where it writes through its map, which cannot be recorded: noted, so that it does not go unseen. */
int msync(void *address, size_t length, int flags) {
    note('m', 0, 0, 0);
    return syscall(SYS_msync, address, length, flags);
}
