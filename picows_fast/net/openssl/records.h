/*
 * Where OpenSSL writes a connection's TLS records: a BIO that puts them together in memory, so that those of one write
 * leave with one system call.
 *
 * OpenSSL's own memory BIO would do, but it clears and moves its memory with each use. Owns the memory while it is in
 * use; connections take it in turns. No Python objects: OpenSSL also writes with the GIL released, in a handshake.
 */
#ifndef PF_NET_RECORDS_H
#define PF_NET_RECORDS_H

#include "lookup.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    /* What is sent at once, at least; and more than the records of one SSL_write() may add to that. */
    PF_RECORDS_SENT = 192 * 1024,
    PF_RECORDS_SIZE = 272 * 1024,
    /* A peer can make a read write something, as often as it likes (RFC 8446 4.6.3). */
    PF_RECORDS_MAX = 1024 * 1024
};

typedef struct pf_records {
    uint8_t *data; /* NULL while nothing is to be written */
    size_t filled, capacity;
} pf_records;

/* For the next one who writes. Guarded by the GIL. */
static uint8_t *pf_spare_records = NULL;

static const pf_openssl *pf_records_library;

/* Begin to accept records. Returns -1 if there is no memory for it. */
static inline int pf_records_open(pf_records *records)
{
    if (records->data != NULL)
        return 0;
    records->data = pf_spare_records != NULL ? pf_spare_records : malloc(PF_RECORDS_SIZE);
    pf_spare_records = NULL;
    records->filled = 0;
    records->capacity = PF_RECORDS_SIZE;
    return records->data == NULL ? -1 : 0;
}

static inline void pf_records_close(pf_records *records)
{
    if (pf_spare_records == NULL && records->capacity == PF_RECORDS_SIZE)
        pf_spare_records = records->data;
    else
        free(records->data);
    records->data = NULL;
    records->filled = 0;
}

static int pf_records_write(void *bio, const char *data, int size)
{
    pf_records *records = pf_records_library->BIO_get_data(bio);
    uint8_t *grown;

    if (records == NULL || records->data == NULL || size < 0)
        return -1;
    if (records->capacity - records->filled < (size_t)size) {
        if (records->filled + (size_t)size > PF_RECORDS_MAX)
            return -1;
        grown = realloc(records->data, PF_RECORDS_MAX);
        if (grown == NULL)
            return -1;
        records->data = grown;
        records->capacity = PF_RECORDS_MAX;
    }
    memcpy(records->data + records->filled, data, (size_t)size);
    records->filled += (size_t)size;
    return size;
}

static long pf_records_ctrl(void *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == PF_BIO_CTRL_FLUSH;
}

/* Have the SSL object write to `records`, until the BIO that this returns is given to pf_records_detach(), which must
 * happen. NULL if it cannot be had. */
static inline void *pf_records_attach(const pf_openssl *library, void *ssl, pf_records *records)
{
    static void *method = NULL;
    void *bio;

    pf_records_library = library;
    if (method == NULL) {
        method = library->BIO_meth_new(PF_BIO_TYPE_SOURCE_SINK, "records");
        if (method == NULL || library->BIO_meth_set_write(method, pf_records_write) != 1 ||
            library->BIO_meth_set_ctrl(method, pf_records_ctrl) != 1)
            return NULL;
    }
    bio = library->BIO_new(method);
    if (bio == NULL)
        return NULL;
    library->BIO_set_data(bio, records);
    library->BIO_set_init(bio, 1);
    library->BIO_up_ref(bio);
    library->SSL_set0_wbio(ssl, bio);
    return bio;
}

/* The SSL object may be kept for longer than the records. */
static inline void pf_records_detach(const pf_openssl *library, void *bio, pf_records *records)
{
    library->BIO_set_data(bio, NULL);
    library->BIO_free(bio);
    free(records->data);
    records->data = NULL;
}

#endif
