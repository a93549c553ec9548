/*
 * A WebSocket connection in C, for reference.c: plain or TLS, either side.
 *
 * Owns: bytes in and out, frames, the opening handshake, opening and closing connections. Does not own: what is sent and
 * answered, which connections are waited for, command lines. Errors of the system end the program.
 */
#ifndef REFERENCE_CONNECTION_H
#define REFERENCE_CONNECTION_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

enum {
    READ_SIZE = 256 * 1024, /* room for one read; also the size of a flood's writes */
    HEADER_ROOM = 14,
};

typedef struct {
    int fd;
    SSL *ssl; /* NULL: plain */
    int upgraded;
    uint8_t *data; /* received, not used up: data[start..end) */
    size_t start, end, capacity;
    uint64_t digest;
} connection;

#ifdef WITH_TLS
static SSL_CTX *tls_context; /* NULL: plain */
#endif
static int stamps; /* times of arrival are wanted */

static void fail(const char *what)
{
    fprintf(stderr, "reference: %s: %s\n", what, errno ? strerror(errno) : "unexpected");
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    if (!memory)
        fail("malloc");
    return memory;
}

/* ---- bytes in and out ---- */

static void wait_for(int fd, short events)
{
    struct pollfd poller = {fd, events, 0};
    while (poll(&poller, 1, -1) < 0)
        if (errno != EINTR)
            fail("poll");
}

/* Bytes read; 0: there are none now; -1: the peer is gone. */
static ssize_t read_some(connection *peer, uint8_t *data, size_t size)
{
    ssize_t result;
#ifdef WITH_TLS
    if (peer->ssl) {
        result = SSL_read(peer->ssl, data, (int)size);
        if (result > 0)
            return result;
        switch (SSL_get_error(peer->ssl, (int)result)) {
        case SSL_ERROR_WANT_READ:
        case SSL_ERROR_WANT_WRITE:
            return 0;
        default:
            ERR_clear_error();
            return -1;
        }
    }
#endif
    if (stamps) {
        char control[128];
        struct iovec part = {data, size};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        result = recvmsg(peer->fd, &message, 0);
    } else {
        result = recv(peer->fd, data, size, 0);
    }
    if (result > 0)
        return result;
    return result < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

/* Everything, however long that takes; -1: the peer is gone. */
static int write_all(connection *peer, const uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t result;
#ifdef WITH_TLS
        if (peer->ssl) {
            result = SSL_write(peer->ssl, data, (int)size);
            if (result <= 0) {
                int error = SSL_get_error(peer->ssl, (int)result);
                if (error != SSL_ERROR_WANT_WRITE && error != SSL_ERROR_WANT_READ)
                    return -1;
                wait_for(peer->fd, error == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN);
                continue;
            }
        } else
#endif
        {
            result = send(peer->fd, data, size, MSG_NOSIGNAL);
            if (result < 0) {
                if (errno != EAGAIN && errno != EINTR)
                    return -1;
                wait_for(peer->fd, POLLOUT);
                continue;
            }
        }
        data += result;
        size -= (size_t)result;
    }
    return 0;
}

/* Reads once into the connection's buffer, which gets room for `wanted` bytes. As read_some. */
static ssize_t fill(connection *peer, size_t wanted)
{
    ssize_t result;
    if (peer->start == peer->end)
        peer->start = peer->end = HEADER_ROOM;
    if (wanted < READ_SIZE)
        wanted = READ_SIZE;
    if (peer->capacity < peer->start + wanted) {
        size_t filled = peer->end - peer->start;
        if (peer->capacity < HEADER_ROOM + wanted) {
            uint8_t *larger = allocate(HEADER_ROOM + wanted);
            memcpy(larger + HEADER_ROOM, peer->data + peer->start, filled);
            free(peer->data);
            peer->data = larger;
            peer->capacity = HEADER_ROOM + wanted;
        } else {
            memmove(peer->data + HEADER_ROOM, peer->data + peer->start, filled);
        }
        peer->start = HEADER_ROOM;
        peer->end = HEADER_ROOM + filled;
    }
    result = read_some(peer, peer->data + peer->end, peer->capacity - peer->end);
    if (result > 0)
        peer->end += (size_t)result;
    return result;
}

/* ---- frames ---- */

typedef struct {
    int opcode, masked;
    size_t header_size, payload_size;
    uint8_t key[4];
} frame;

/* 1, or 0 as long as the frame is not complete; header_size is 0 while the header is not, either. */
static int read_frame(const uint8_t *data, size_t size, frame *out)
{
    size_t header_size = 2;
    out->header_size = 0;
    if (size < 2)
        return 0;
    out->opcode = data[0] & 0x0F;
    out->masked = data[1] >> 7;
    out->payload_size = data[1] & 0x7F;
    if (out->payload_size == 126) {
        if (size < 4)
            return 0;
        out->payload_size = (size_t)data[2] << 8 | data[3];
        header_size = 4;
    } else if (out->payload_size == 127) {
        if (size < 10)
            return 0;
        out->payload_size = 0;
        for (int i = 2; i < 10; i++)
            out->payload_size = out->payload_size << 8 | data[i];
        header_size = 10;
    }
    if (out->masked) {
        if (size < header_size + 4)
            return 0;
        memcpy(out->key, data + header_size, 4);
        header_size += 4;
    }
    out->header_size = header_size;
    return size - header_size >= out->payload_size;
}

static size_t write_header(uint8_t *out, int opcode, size_t payload_size, const uint8_t *key)
{
    const unsigned mask_bit = key ? 0x80 : 0;
    size_t size = 2;
    out[0] = (uint8_t)(0x80 | opcode);
    if (payload_size < 126) {
        out[1] = (uint8_t)(mask_bit | payload_size);
    } else if (payload_size <= 0xFFFF) {
        out[1] = (uint8_t)(mask_bit | 126);
        out[2] = (uint8_t)(payload_size >> 8);
        out[3] = (uint8_t)payload_size;
        size = 4;
    } else {
        out[1] = (uint8_t)(mask_bit | 127);
        for (int i = 0; i < 8; i++)
            out[2 + i] = (uint8_t)(payload_size >> (56 - 8 * i));
        size = 10;
    }
    if (key) {
        memcpy(out + size, key, 4);
        size += 4;
    }
    return size;
}

/* The compiler makes vectors of the loop over words. */
static void mask(uint8_t *out, const uint8_t *in, size_t size, const uint8_t key[4])
{
    uint32_t word_key;
    size_t i;
    memcpy(&word_key, key, 4);
    for (i = 0; i + 4 <= size; i += 4) {
        uint32_t word;
        memcpy(&word, in + i, 4);
        word ^= word_key;
        memcpy(out + i, &word, 4);
    }
    for (; i < size; i++)
        out[i] = in[i] ^ key[i & 3];
}

static void next_key(uint8_t key[4])
{
    static uint64_t state;
    if (!state)
        state = (uint64_t)(now() * 1e9) | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    memcpy(key, &state, 4);
}

/* ---- opening handshake ---- */

static uint32_t rotate(uint32_t word, int bits)
{
    return word << bits | word >> (32 - bits);
}

/* SHA-1 (FIPS 180-4) of fewer than 120 bytes. */
static void sha1(const uint8_t *data, size_t size, uint8_t digest[20])
{
    uint32_t hash[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t blocks[128] = {0};
    size_t padded = size < 56 ? 64 : 128;
    memcpy(blocks, data, size);
    blocks[size] = 0x80;
    blocks[padded - 2] = (uint8_t)(size >> 5);
    blocks[padded - 1] = (uint8_t)(size << 3);
    for (size_t block = 0; block < padded; block += 64) {
        uint32_t w[80], a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4];
        for (size_t i = 0; i < 16; i++) {
            const uint8_t *p = blocks + block + 4 * i;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++)
            w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t mixed = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                             : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                             : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                                      : (b ^ c ^ d) + 0xCA62C1D6;
            mixed += rotate(a, 5) + e + w[i];
            e = d;
            d = c;
            c = rotate(b, 30);
            b = a;
            a = mixed;
        }
        hash[0] += a, hash[1] += b, hash[2] += c, hash[3] += d, hash[4] += e;
    }
    for (int i = 0; i < 20; i++)
        digest[i] = (uint8_t)(hash[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const uint8_t *data, size_t size, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        uint32_t word = (uint32_t)data[i] << 16;
        if (i + 1 < size)
            word |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < size)
            word |= data[i + 2];
        *out++ = digits[word >> 18];
        *out++ = digits[word >> 12 & 63];
        *out++ = i + 1 < size ? digits[word >> 6 & 63] : '=';
        *out++ = i + 2 < size ? digits[word & 63] : '=';
    }
    *out = 0;
}

/* Answers the request, once it is complete. 1: done, 0: not yet, -1: the peer is gone. */
static int upgrade_server(connection *peer)
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    uint8_t *end, digest[20];
    char *key, accept[32], response[256];
    uint8_t hashed[24 + sizeof guid];
    end = memmem(peer->data + peer->start, peer->end - peer->start, "\r\n\r\n", 4);
    if (!end)
        return 0;
    *end = 0;
    key = strcasestr((char *)peer->data + peer->start, "\r\nsec-websocket-key:");
    if (!key)
        return -1;
    key += strlen("\r\nsec-websocket-key:");
    key += strspn(key, " ");
    memcpy(hashed, key, 24); /* its size is fixed: RFC 6455 4.1 */
    memcpy(hashed + 24, guid, sizeof guid - 1);
    sha1(hashed, 24 + sizeof guid - 1, digest);
    base64(digest, 20, accept);
    snprintf(response, sizeof response,
             "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Accept: %s\r\n\r\n",
             accept);
    peer->start = (size_t)(end + 4 - peer->data);
    peer->upgraded = 1;
    return write_all(peer, (uint8_t *)response, strlen(response)) < 0 ? -1 : 1;
}

static void send_request(connection *peer)
{
    static const char request[] =
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    if (write_all(peer, (const uint8_t *)request, sizeof request - 1) < 0)
        fail("sending the request");
}

static void read_response(connection *peer)
{
    uint8_t *end;
    while (!(end = memmem(peer->data + peer->start, peer->end - peer->start, "\r\n\r\n", 4))) {
        ssize_t result = fill(peer, 0);
        if (result < 0)
            fail("no response");
        if (result == 0)
            wait_for(peer->fd, POLLIN);
    }
    if (memcmp(peer->data + peer->start, "HTTP/1.1 101", 12) != 0) {
        errno = 0;
        fail("refused");
    }
    peer->start = (size_t)(end + 4 - peer->data);
    peer->upgraded = 1;
}

/* ---- connections ---- */

static connection *new_connection(int fd)
{
    connection *peer = allocate(sizeof *peer);
    int one = 1;
    memset(peer, 0, sizeof *peer);
    peer->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (stamps) {
        int flags = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags);
    }
#ifdef WITH_TLS
    if (tls_context) {
        peer->ssl = SSL_new(tls_context);
        if (!peer->ssl || SSL_set_fd(peer->ssl, fd) != 1)
            fail("SSL_new");
    }
#endif
    return peer;
}

static void set_nonblocking(int fd)
{
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        fail("fcntl");
}

static void close_connection(connection *peer)
{
#ifdef WITH_TLS
    if (peer->ssl)
        SSL_free(peer->ssl);
#endif
    close(peer->fd);
    free(peer->data);
    free(peer);
}

static connection *connect_to(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    connection *peer;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    peer = new_connection(fd);
#ifdef WITH_TLS
    if (peer->ssl && SSL_connect(peer->ssl) != 1)
        fail("SSL_connect");
#endif
    return peer;
}

static int listen_anywhere(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(fd, 1024) < 0 || getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        fail("listen");
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    return fd;
}

static connection *accept_from(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    connection *peer;
    if (fd < 0)
        fail("accept");
    peer = new_connection(fd);
#ifdef WITH_TLS
    if (peer->ssl && SSL_accept(peer->ssl) != 1) { /* blocking: benchmarks connect one by one */
        ERR_clear_error();
        close_connection(peer);
        return NULL;
    }
#endif
    return peer;
}

static void watch(int poller, int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

static void use_tls(const char *certificate, int is_server)
{
#ifdef WITH_TLS
    tls_context = SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method());
    if (!tls_context)
        fail("SSL_CTX_new");
    SSL_CTX_set_read_ahead(tls_context, 1);
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (is_server && (SSL_CTX_use_certificate_chain_file(tls_context, certificate) != 1 ||
                      SSL_CTX_use_PrivateKey_file(tls_context, certificate, SSL_FILETYPE_PEM) != 1))
        fail("certificate");
    ERR_clear_error(); /* reading a chain to its end leaves one, which SSL_get_error would take for its own */
#else
    (void)certificate, (void)is_server;
    errno = 0;
    fail("built without TLS");
#endif
}

#endif
