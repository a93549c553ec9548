/*
 * Receiving with the time at which the data came, as the kernel noted it (Linux: SO_TIMESTAMPING).
 *
 * A read has one time, that of the last segment which it took data of. Software stamps are of the system's real-time
 * clock, made when the packet left the driver; hardware stamps of the network device's own clock, where it is set up to
 * make them. Owns no descriptor. No Python objects: OpenSSL reads with the GIL released, too.
 */
#ifndef PF_NET_TIMESTAMPS_H
#define PF_NET_TIMESTAMPS_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef struct pf_stamps {
    int64_t software, hardware; /* nanoseconds; -1: not known */
} pf_stamps;

#if defined(__linux__) && (defined(SO_TIMESTAMPING_NEW) || defined(SO_TIMESTAMPING))
#define PF_HAS_STAMPS 1

/* The one with 64 bits everywhere came with Linux 5.1; before it, 64-bit systems have the same under another number. */
#ifdef SO_TIMESTAMPING_NEW
#define PF_STAMPING SO_TIMESTAMPING_NEW
#else
#define PF_STAMPING SO_TIMESTAMPING
#endif

enum {
    PF_STAMP_RX_HARDWARE = 1 << 2,
    PF_STAMP_RX_SOFTWARE = 1 << 3,
    PF_STAMP_SOFTWARE = 1 << 4,
    PF_STAMP_RAW_HARDWARE = 1 << 6
};

static inline int64_t pf_stamp_of(const int64_t *seconds_and_nanoseconds)
{
    if (seconds_and_nanoseconds[0] == 0 && seconds_and_nanoseconds[1] == 0)
        return -1;
    return seconds_and_nanoseconds[0] * 1000000000 + seconds_and_nanoseconds[1];
}

/* What the control messages of a read say. */
static inline void pf_read_stamps(struct msghdr *message, pf_stamps *stamps)
{
    struct cmsghdr *control;
    int64_t times[6]; /* seconds and nanoseconds: software, unused, hardware */

    stamps->software = stamps->hardware = -1;
    for (control = CMSG_FIRSTHDR(message); control != NULL; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level != SOL_SOCKET || control->cmsg_len < CMSG_LEN(sizeof times))
            continue;
        if (control->cmsg_type == PF_STAMPING || control->cmsg_type == SO_TIMESTAMPING) {
            memcpy(times, CMSG_DATA(control), sizeof times);
            stamps->software = pf_stamp_of(times);
            stamps->hardware = pf_stamp_of(times + 4);
            return;
        }
    }
}

/* recv(), and when the data came. */
static inline ssize_t pf_recv_stamped(int fd, void *data, size_t size, pf_stamps *stamps)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(6 * sizeof(int64_t)) + 64];
    } control;
    struct iovec part = {data, size};
    struct msghdr message;
    ssize_t received;

    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.room;
    message.msg_controllen = sizeof control.room;
    received = recvmsg(fd, &message, 0);
    if (received > 0)
        pf_read_stamps(&message, stamps);
    return received;
}

/* Have the kernel note the times. Returns 0, or -1 if it will not. */
static inline int pf_stamps_enable(int fd)
{
    int flags = PF_STAMP_RX_SOFTWARE | PF_STAMP_SOFTWARE | PF_STAMP_RX_HARDWARE | PF_STAMP_RAW_HARDWARE;

    if (setsockopt(fd, SOL_SOCKET, PF_STAMPING, &flags, sizeof flags) == 0)
        return 0;
    if (sizeof(long) < 8)
        return -1;
    return setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags);
}

#else
#define PF_HAS_STAMPS 0

static inline ssize_t pf_recv_stamped(int fd, void *data, size_t size, pf_stamps *stamps)
{
    stamps->software = stamps->hardware = -1;
    return recv(fd, data, size, 0);
}

static inline int pf_stamps_enable(int fd)
{
    (void)fd;
    return -1;
}
#endif

#endif
