/*
 * Where OpenSSL reads a connection's TLS records when their time of arrival is wanted: a BIO over the descriptor that
 * notes it. Without that wish, OpenSSL's own socket BIO reads.
 */
#ifndef PF_NET_STAMPED_SOURCE_H
#define PF_NET_STAMPED_SOURCE_H

#include "lookup.h"
#include "../timestamps.h"

typedef struct pf_source {
    int fd; /* -1: closed */
    int at_end;
    pf_stamps stamps; /* of the last read that brought data */
} pf_source;

static const pf_openssl *pf_source_library;

static int pf_source_read(void *bio, char *data, int size)
{
    pf_source *source = pf_source_library->BIO_get_data(bio);
    ssize_t received;

    pf_source_library->BIO_clear_flags(bio, PF_BIO_FLAGS_RWS | PF_BIO_FLAGS_SHOULD_RETRY);
    if (source == NULL || source->fd < 0 || size <= 0)
        return -1;
    received = pf_recv_stamped(source->fd, data, (size_t)size, &source->stamps);
    if (received == 0)
        source->at_end = 1;
    else if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        pf_source_library->BIO_set_flags(bio, PF_BIO_FLAGS_READ | PF_BIO_FLAGS_SHOULD_RETRY);
    return (int)received;
}

static long pf_source_ctrl(void *bio, int command, long number, void *pointer)
{
    pf_source *source = pf_source_library->BIO_get_data(bio);

    (void)number, (void)pointer;
    if (command == PF_BIO_CTRL_EOF)
        return source == NULL || source->at_end;
    return command == PF_BIO_CTRL_FLUSH;
}

/* Have the SSL object read from `source`, until the BIO that this returns is given to pf_source_detach(), which must
 * happen. NULL if it cannot be had. */
static inline void *pf_source_attach(const pf_openssl *library, void *ssl, pf_source *source)
{
    static void *method = NULL;
    void *bio;

    pf_source_library = library;
    if (method == NULL) {
        method = library->BIO_meth_new(PF_BIO_TYPE_SOURCE_SINK, "stamped source");
        if (method == NULL || library->BIO_meth_set_read(method, pf_source_read) != 1 ||
            library->BIO_meth_set_ctrl(method, pf_source_ctrl) != 1)
            return NULL;
    }
    bio = library->BIO_new(method);
    if (bio == NULL)
        return NULL;
    library->BIO_set_data(bio, source);
    library->BIO_set_init(bio, 1);
    library->BIO_up_ref(bio);
    library->SSL_set0_rbio(ssl, bio);
    return bio;
}

/* The SSL object may be kept for longer than the source. */
static inline void pf_source_detach(const pf_openssl *library, void *bio)
{
    library->BIO_set_data(bio, NULL);
    library->BIO_free(bio);
}

#endif
