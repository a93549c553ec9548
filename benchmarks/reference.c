/*
 * What the benchmarks compare with, and what they are driven by: WebSocket peers in C, on epoll and
 * without any library but OpenSSL. They speak just enough of RFC 6455 for a peer that behaves.
 *
 *   reference COMMAND [name=value ...]
 *
 *   serve  [tls=PEM] [sink=1] [stamps=1]           echo server, or one that only reads; until stdin ends
 *   echo   port= size= seconds= [tls=1] [spin=1] [stamps=1]
 *                                                  echo client: one message at a time, for so long at each line
 *                                                  of stdin -> count, seconds, of each;
 *                                                  `spin`: asks for the answer again and again, and never blocks
 *                                                  `stamps` (here, too; not with TLS): reads come with the
 *                                                  kernel's times of arrival
 *   flood  seconds= (size= | file= frames=) [answered=1] [tls=PEM]
 *                                                  serves one client: frames of `size` bytes, or a file of
 *                                                  ready frames again and again, then CLOSE; `answered`:
 *                                                  waits for the client's -> frames, bytes
 *   drain  port= clients= [tls=1] [digests=1] [stamped=1] [stalled=N]
 *                                                  clients that read and drop everything, the last N of
 *                                                  them nothing; until stdin ends -> bytes; `digests`: also
 *                                                  FNV-1a of each client's bytes; `stamped`: payloads begin
 *                                                  with 8 bytes, CLOCK_MONOTONIC in ns of this machine's byte
 *                                                  order -> also how old they were: count, p50, p99, max in ns
 *   handshakes  port= seconds= [tls=1]             connects, upgrades, closes, again and again -> count
 *   turns  port= connections= pause= seconds=      clients that get a frame each; who gets the last of a turn asks
 *                                                  for the next, and all sleep for `pause` -> frames, cpu
 *
 * Every command prints JSON objects, a line each: servers {"port": ...}, `drain` and `echo` {"ready": ...}
 * when they are connected, and then what is named behind the arrow.
 *
 * Echo server and client are the floor: one system call for a readiness event, one for reading, one
 * for writing; frames are unmasked and answered in place. Built without WITH_TLS it has no TLS.
 */
#include "reference_connection.h" /* first: it says which interfaces there are */

#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { PARALLEL_HANDSHAKES = 8 };

/* Answers the frames that have come. Returns -1 when the connection is to be closed. */
static int answer(connection *peer, int sink)
{
    frame received;
    if (!peer->upgraded) {
        int result = upgrade_server(peer);
        if (result <= 0)
            return result;
    }
    if (sink) {
        peer->start = peer->end;
        return 0;
    }
    while (read_frame(peer->data + peer->start, peer->end - peer->start, &received)) {
        uint8_t header[HEADER_ROOM], *payload = peer->data + peer->start + received.header_size;
        size_t header_size;
        if (received.masked)
            mask(payload, payload, received.payload_size, received.key);
        /* Never longer than the header that was received: it goes in its place. */
        header_size = write_header(header, received.opcode, received.payload_size, NULL);
        memcpy(payload - header_size, header, header_size);
        if (write_all(peer, payload - header_size, header_size + received.payload_size) < 0)
            return -1;
        peer->start += received.header_size + received.payload_size;
        if (received.opcode == 8)
            return -1;
    }
    return 0;
}

/* One readiness event; -1 when the connection is to be closed. */
static int serve_connection(connection *peer, int sink)
{
    for (;;) {
        frame unfinished;
        size_t wanted = 0;
        ssize_t result;
        if (peer->upgraded && !read_frame(peer->data + peer->start, peer->end - peer->start, &unfinished) &&
            unfinished.header_size)
            wanted = unfinished.header_size + unfinished.payload_size;
        result = fill(peer, wanted);
        if (result <= 0)
            return (int)result;
        if (answer(peer, sink) < 0)
            return -1;
        /* OpenSSL may hold more than was asked for, which no readiness event would tell. */
        if (!peer->ssl)
            return 0;
    }
}

static void serve(int sink)
{
    int listener = listen_anywhere(), poller = epoll_create1(EPOLL_CLOEXEC);
    static int listening, ending;
    watch(poller, listener, &listening);
    watch(poller, STDIN_FILENO, &ending);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            connection *peer = events[i].data.ptr;
            if (events[i].data.ptr == &ending)
                return;
            if (events[i].data.ptr == &listening) {
                peer = accept_from(listener);
                if (!peer)
                    continue;
                set_nonblocking(peer->fd);
                watch(poller, peer->fd, peer);
                /* What came with the end of the TLS handshake is no event. */
                if (peer->ssl && serve_connection(peer, sink) < 0)
                    close_connection(peer);
            } else if (serve_connection(peer, sink) < 0) {
                close_connection(peer);
            }
        }
    }
}

static void echo(int port, size_t size, double seconds, int spin)
{
    char line[256];
    const int timeout = spin ? 0 : -1;
    connection *peer = connect_to(port);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    uint8_t *message = allocate(size + 1), *out = allocate(HEADER_ROOM + size);
    for (size_t i = 0; i < size; i++)
        message[i] = (uint8_t)(i * 7 + i / 251);
    send_request(peer);
    read_response(peer);
    set_nonblocking(peer->fd);
    watch(poller, peer->fd, peer);
    printf("{\"ready\": 1}\n");
    while (fgets(line, sizeof line, stdin)) {
        double start = now(), end = start;
        long count = 0;
        while (end - start < seconds) {
            struct epoll_event event;
            uint8_t key[4];
            size_t header_size;
            frame received;
            next_key(key);
            header_size = write_header(out, 2, size, key);
            mask(out + header_size, message, size, key);
            if (write_all(peer, out, header_size + size) < 0)
                fail("sending");
            while (!read_frame(peer->data + peer->start, peer->end - peer->start, &received)) {
                ssize_t result = 0;
                if (peer->ssl)
                    result = fill(peer, size + HEADER_ROOM);
                if (result == 0) {
                    int ready = epoll_wait(poller, &event, 1, timeout);
                    if (ready < 0 && errno != EINTR)
                        fail("epoll_wait");
                    if (ready > 0)
                        result = fill(peer, size + HEADER_ROOM);
                }
                if (result < 0)
                    fail("receiving");
            }
            if (received.payload_size != size)
                fail("another frame than was sent");
            peer->start += received.header_size + received.payload_size;
            count++;
            if ((count & 15) == 0 || size > 8192)
                end = now();
        }
        printf("{\"count\": %ld, \"seconds\": %.9f}\n", count, end - start);
    }
    close_connection(peer);
}

static void flood(const char *file, size_t size, long frames, double seconds, int answered)
{
    static const uint8_t closing[] = {0x88, 2, 1000 >> 8, 1000 & 0xFF};
    int listener = listen_anywhere();
    connection *peer;
    uint8_t *bulk, rest[4096];
    size_t bulk_size;
    double start;
    long rounds = 0;
    if (file) {
        FILE *input = fopen(file, "rb");
        if (!input || fseek(input, 0, SEEK_END) < 0)
            fail(file);
        bulk_size = (size_t)ftell(input);
        bulk = allocate(bulk_size);
        rewind(input);
        if (fread(bulk, 1, bulk_size, input) != bulk_size)
            fail(file);
        fclose(input);
    } else {
        bulk_size = 0;
        bulk = allocate(READ_SIZE + HEADER_ROOM + size);
        for (frames = 0; bulk_size < READ_SIZE; frames++) {
            bulk_size += write_header(bulk + bulk_size, 2, size, NULL);
            memset(bulk + bulk_size, 'a' + (int)(frames % 26), size);
            bulk_size += size;
        }
    }
    peer = accept_from(listener);
    if (!peer)
        fail("handshake");
    for (;;) {
        int result;
        if (fill(peer, 0) < 0 || (result = upgrade_server(peer)) < 0)
            fail("handshake");
        if (result)
            break;
    }
    start = now();
    do {
        for (size_t sent = 0; sent < bulk_size; sent += READ_SIZE) {
            size_t piece = bulk_size - sent < READ_SIZE ? bulk_size - sent : READ_SIZE;
            if (write_all(peer, bulk + sent, piece) < 0)
                fail("sending");
        }
        rounds++;
    } while (now() - start < seconds);
    write_all(peer, closing, sizeof closing);
    if (answered)
        read_some(peer, rest, sizeof rest);
#ifdef WITH_TLS
    if (peer->ssl)
        SSL_shutdown(peer->ssl);
#endif
    shutdown(peer->fd, SHUT_WR);
    while (read_some(peer, rest, sizeof rest) > 0)
        ;
    printf("{\"frames\": %ld, \"bytes\": %zu}\n", rounds * frames, (size_t)rounds * bulk_size);
    close_connection(peer);
}

/* ---- clients that take everything ---- */

typedef struct {
    int digests, stamped;
    unsigned long long bytes;
    uint32_t *ages; /* ns, at most 4 s; the oldest are written over */
    size_t count;
} taking;

enum { AGES = 1 << 22 };

static const uint64_t FNV_BASIS = 0xCBF29CE484222325, FNV_PRIME = 0x100000001B3;

static uint64_t fnv_1a(uint64_t digest, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        digest = (digest ^ data[i]) * FNV_PRIME;
    return digest;
}

static int compare_ages(const void *one, const void *other)
{
    const uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return a < b ? -1 : a > b;
}

/* Counts how old the stamps of all complete frames are. */
static void read_stamps(connection *peer, taking *all)
{
    const uint64_t read_at = (uint64_t)(now() * 1e9);
    frame next;
    while (read_frame(peer->data + peer->start, peer->end - peer->start, &next)) {
        uint64_t stamp, age;
        if (next.opcode < 8 && next.payload_size >= sizeof stamp) {
            memcpy(&stamp, peer->data + peer->start + next.header_size, sizeof stamp);
            age = read_at > stamp ? read_at - stamp : 0;
            all->ages[all->count++ % AGES] = age < UINT32_MAX ? (uint32_t)age : UINT32_MAX;
        }
        peer->start += next.header_size + next.payload_size;
    }
}

/* One read. As read_some, but -1 also at the end of the stream. */
static ssize_t take(connection *peer, taking *all, uint8_t *waste)
{
    ssize_t result;
    if (all->stamped) {
        result = fill(peer, 0);
        if (result > 0)
            read_stamps(peer, all);
    } else if (all->digests || peer->ssl) {
        result = read_some(peer, waste, READ_SIZE);
        if (result > 0 && all->digests)
            peer->digest = fnv_1a(peer->digest, waste, (size_t)result);
    } else {
        /* The kernel does not even copy what MSG_TRUNC reads from a TCP socket. */
        result = recv(peer->fd, NULL, READ_SIZE, MSG_TRUNC);
        if (result <= 0)
            result = result < 0 && errno == EAGAIN ? 0 : -1;
    }
    if (result > 0)
        all->bytes += (unsigned long long)result;
    return result;
}

static void print_taken(taking *all, connection **peers, int clients)
{
    printf("{\"bytes\": %llu", all->bytes);
    if (all->stamped) {
        const size_t kept = all->count < AGES ? all->count : AGES;
        qsort(all->ages, kept, sizeof *all->ages, compare_ages);
        printf(", \"count\": %zu", all->count);
        if (kept)
            printf(", \"p50\": %u, \"p99\": %u, \"max\": %u", all->ages[kept / 2],
                   all->ages[kept - 1 - kept / 100], all->ages[kept - 1]);
    }
    if (all->digests) {
        printf(", \"digests\": [");
        for (int i = 0; i < clients; i++)
            printf("%s\"%016llx\"", i ? ", " : "", (unsigned long long)peers[i]->digest);
        printf("]");
    }
    printf("}\n");
}

static void drain(int port, int clients, int stalled, int digests, int stamped)
{
    int poller = epoll_create1(EPOLL_CLOEXEC);
    uint8_t *waste = allocate(READ_SIZE);
    connection **peers = allocate((size_t)clients * sizeof *peers);
    taking all = {.digests = digests, .stamped = stamped};
    if (stamped)
        all.ages = allocate(AGES * sizeof *all.ages);
    for (int i = 0; i < clients; i++) {
        connection *peer = peers[i] = connect_to(port);
        send_request(peer);
        read_response(peer);
        peer->digest = fnv_1a(FNV_BASIS, peer->data + peer->start, peer->end - peer->start);
        free(peer->data);
        peer->data = NULL;
        peer->start = peer->end = peer->capacity = 0;
        set_nonblocking(peer->fd);
        if (i < clients - stalled)
            watch(poller, peer->fd, peer);
    }
    watch(poller, STDIN_FILENO, NULL);
    printf("{\"ready\": %d}\n", clients);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            connection *peer = events[i].data.ptr;
            ssize_t result;
            if (!peer) {
                for (int j = 0; j < clients - stalled; j++)
                    while (peers[j]->fd >= 0 && take(peers[j], &all, waste) > 0)
                        ;
                print_taken(&all, peers, clients - stalled);
                return;
            }
            do
                result = take(peer, &all, waste);
            while (peer->ssl && result > 0);
            if (result < 0) {
                close(peer->fd);
                peer->fd = -1;
            }
        }
    }
}

static void handshakes(int port, double seconds)
{
    double start = now(), end = start;
    long count = 0;
    while (end - start < seconds) {
        connection *peers[PARALLEL_HANDSHAKES];
        for (int i = 0; i < PARALLEL_HANDSHAKES; i++) {
            peers[i] = connect_to(port);
            send_request(peers[i]);
        }
        for (int i = 0; i < PARALLEL_HANDSHAKES; i++) {
            read_response(peers[i]);
            close_connection(peers[i]);
            count++;
        }
        end = now();
    }
    printf("{\"count\": %ld, \"seconds\": %.9f}\n", count, end - start);
}

static double cpu_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Small frames on many connections, each read whole: what is left is asking who is ready, and reading. */
static void turns(int port, int connections, double pause, double seconds)
{
    int poller = epoll_create1(EPOLL_CLOEXEC);
    uint8_t *data = allocate(READ_SIZE), next[] = {0x82, 0x84, 0, 0, 0, 0, 'n', 'e', 'x', 't'};
    const struct timespec sleep = {(time_t)pause, (long)((pause - (double)(time_t)pause) * 1e9)};
    double start = 0, cpu = 0, begin = now() + seconds / 8;
    long frames = 0, counted = 0;
    connection *peer = NULL;
    for (int i = 0; i < connections; i++) {
        peer = connect_to(port);
        send_request(peer);
        read_response(peer);
        set_nonblocking(peer->fd);
        watch(poller, peer->fd, peer);
    }
    write_all(peer, next, sizeof next);
    while (!start || now() - start < seconds) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        if (!start && now() >= begin) {
            start = now();
            cpu = cpu_seconds();
            counted = frames;
        }
        for (int i = 0; i < count; i++) {
            ssize_t size, used;
            frame received;
            peer = events[i].data.ptr;
            size = read_some(peer, data, READ_SIZE);
            if (size < 0)
                fail("receiving");
            for (used = 0; read_frame(data + used, (size_t)(size - used), &received);) {
                used += (ssize_t)(received.header_size + received.payload_size);
                if (++frames % connections == 0) {
                    write_all(peer, next, sizeof next);
                    nanosleep(&sleep, NULL);
                }
            }
        }
    }
    printf("{\"frames\": %ld, \"cpu\": %.9f}\n", frames - counted, cpu_seconds() - cpu);
}

static const char *option(char **arguments, const char *name)
{
    const size_t size = strlen(name);
    for (; *arguments; arguments++)
        if (strncmp(*arguments, name, size) == 0 && (*arguments)[size] == '=')
            return *arguments + size + 1;
    return NULL;
}

static double number(char **arguments, const char *name)
{
    const char *text = option(arguments, name);
    return text ? atof(text) : 0;
}

int main(int count, char **arguments)
{
    struct rlimit files;
    const char *command = count > 1 ? arguments[1] : "";
    const char *tls = option(arguments, "tls");
    const int port = (int)number(arguments, "port");
    const double seconds = number(arguments, "seconds");
    const size_t size = (size_t)number(arguments, "size");

    stamps = number(arguments, "stamps") != 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing outlives the benchmark */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (tls)
        use_tls(tls, strcmp(command, "serve") == 0 || strcmp(command, "flood") == 0);
    if (strcmp(command, "serve") == 0)
        serve(number(arguments, "sink") != 0);
    else if (strcmp(command, "echo") == 0)
        echo(port, size, seconds, number(arguments, "spin") != 0);
    else if (strcmp(command, "flood") == 0)
        flood(option(arguments, "file"), size, (long)number(arguments, "frames"), seconds,
              number(arguments, "answered") != 0);
    else if (strcmp(command, "drain") == 0)
        drain(port, (int)number(arguments, "clients"), (int)number(arguments, "stalled"),
              number(arguments, "digests") != 0, number(arguments, "stamped") != 0);
    else if (strcmp(command, "handshakes") == 0)
        handshakes(port, seconds);
    else if (strcmp(command, "turns") == 0)
        turns(port, (int)number(arguments, "connections"), number(arguments, "pause"), seconds);
    else {
        fprintf(stderr, "usage: reference serve|echo|flood|drain|handshakes|turns [name=value ...]\n");
        return 2;
    }
    return 0;
}
