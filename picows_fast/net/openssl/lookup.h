/*
 * OpenSSL as the running Python's ssl module uses it: its functions, looked up in the libraries that module has loaded,
 * and the SSL object inside an ssl.SSLObject.
 *
 * Nothing is linked and no OpenSSL header is needed. Whatever is not found, or does not look as expected, makes the
 * lookup fail, and the caller does without. Owns no connection.
 */
#ifndef PF_NET_OPENSSL_LOOKUP_H
#define PF_NET_OPENSSL_LOOKUP_H

#include <Python.h>
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

typedef struct pf_openssl {
    int (*SSL_read)(void *ssl, void *data, int size);
    int (*SSL_write)(void *ssl, const void *data, int size);
    int (*SSL_shutdown)(void *ssl);
    int (*SSL_get_error)(const void *ssl, int result);
    int (*SSL_has_pending)(const void *ssl);
    int (*SSL_in_init)(const void *ssl);
    int (*SSL_renegotiate_pending)(const void *ssl);
    int (*SSL_set_rfd)(void *ssl, int fd);
    void *(*SSL_get_rbio)(const void *ssl);
    long (*BIO_ctrl)(void *bio, int command, long number, void *pointer);
    void *(*BIO_meth_new)(int type, const char *name);
    int (*BIO_meth_set_read)(void *method, int (*read)(void *bio, char *data, int size));
    int (*BIO_meth_set_write)(void *method, int (*write)(void *bio, const char *data, int size));
    int (*BIO_meth_set_ctrl)(void *method, long (*ctrl)(void *bio, int command, long number, void *pointer));
    void *(*BIO_new)(const void *method);
    void (*BIO_set_init)(void *bio, int init);
    void (*BIO_set_data)(void *bio, void *data);
    void *(*BIO_get_data)(void *bio);
    int (*BIO_up_ref)(void *bio);
    int (*BIO_free)(void *bio);
    void (*BIO_set_flags)(void *bio, int flags);
    void (*BIO_clear_flags)(void *bio, int flags);
    void (*SSL_set0_rbio)(void *ssl, void *bio);
    void (*SSL_set0_wbio)(void *ssl, void *bio);
    void *(*SSL_get_ex_data)(const void *ssl, int index);
    void (*SSL_set_read_ahead)(void *ssl, int yes);
    void (*SSL_set_default_read_buffer_len)(void *ssl, size_t size);
    void *SSL_set_options; /* takes unsigned long before OpenSSL 3, uint64_t since */
    void (*ERR_clear_error)(void);
    unsigned long (*ERR_peek_error)(void);
    void (*ERR_error_string_n)(unsigned long error, char *text, size_t size);
    unsigned long (*OpenSSL_version_num)(void);
    const char *(*OpenSSL_version)(int what);
} pf_openssl;

enum {
    PF_SSL_ERROR_SSL = 1,
    PF_SSL_ERROR_WANT_READ = 2,
    PF_SSL_ERROR_SYSCALL = 5,
    PF_SSL_ERROR_ZERO_RETURN = 6
};

#define PF_SSL_OP_IGNORE_UNEXPECTED_EOF 0x80u /* since OpenSSL 3 */
#define PF_BIO_FLAGS_READ 0x01
#define PF_BIO_FLAGS_RWS 0x07
#define PF_BIO_FLAGS_SHOULD_RETRY 0x08
#define PF_BIO_CTRL_EOF 2
#define PF_BIO_CTRL_FLUSH 11
#define PF_BIO_C_SET_FD 104
#define PF_BIO_NOCLOSE 0
#define PF_BIO_TYPE_SOURCE_SINK 0x0400
#define PF_OPENSSL_3 0x30000000ul

/* Fills in *library from the shared objects that the extension module at `path` depends on. Returns 0, or -1 if any is
 * missing (OpenSSL linked into the module or the executable, say). The handle stays open, as the module does. */
static inline int pf_openssl_load(pf_openssl *library, const char *path)
{
    void *handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);

    if (handle == NULL)
        return -1;
#define PF_LOOK_UP(name)                                        \
    do {                                                        \
        void *found = dlsym(handle, #name);                     \
        if (found == NULL)                                      \
            return -1;                                          \
        memcpy(&library->name, &found, sizeof found);           \
    } while (0)
    PF_LOOK_UP(SSL_read);
    PF_LOOK_UP(SSL_write);
    PF_LOOK_UP(SSL_shutdown);
    PF_LOOK_UP(SSL_get_error);
    PF_LOOK_UP(SSL_has_pending);
    PF_LOOK_UP(SSL_in_init);
    PF_LOOK_UP(SSL_renegotiate_pending);
    PF_LOOK_UP(SSL_set_rfd);
    PF_LOOK_UP(SSL_get_rbio);
    PF_LOOK_UP(SSL_set0_rbio);
    PF_LOOK_UP(SSL_set0_wbio);
    PF_LOOK_UP(BIO_ctrl);
    PF_LOOK_UP(BIO_meth_new);
    PF_LOOK_UP(BIO_meth_set_read);
    PF_LOOK_UP(BIO_meth_set_write);
    PF_LOOK_UP(BIO_meth_set_ctrl);
    PF_LOOK_UP(BIO_new);
    PF_LOOK_UP(BIO_set_init);
    PF_LOOK_UP(BIO_set_data);
    PF_LOOK_UP(BIO_get_data);
    PF_LOOK_UP(BIO_up_ref);
    PF_LOOK_UP(BIO_free);
    PF_LOOK_UP(BIO_set_flags);
    PF_LOOK_UP(BIO_clear_flags);
    PF_LOOK_UP(SSL_get_ex_data);
    PF_LOOK_UP(SSL_set_read_ahead);
    PF_LOOK_UP(SSL_set_default_read_buffer_len);
    PF_LOOK_UP(SSL_set_options);
    PF_LOOK_UP(ERR_clear_error);
    PF_LOOK_UP(ERR_peek_error);
    PF_LOOK_UP(ERR_error_string_n);
    PF_LOOK_UP(OpenSSL_version_num);
    PF_LOOK_UP(OpenSSL_version);
#undef PF_LOOK_UP
    return 0;
}

/* The start of CPython's PySSLSocket, the same from 3.10 on. */
typedef struct pf_ssl_socket {
    PyObject_HEAD
    PyObject *socket; /* weak reference to the SSLSocket; NULL for an SSLObject */
    void *ssl;
    PyObject *context;
} pf_ssl_socket;

/* The SSL object of `tls`, or NULL if that is not an object of exactly the `type` _ssl._SSLSocket which belongs to
 * `context` and has no socket. What lies on both sides of the pointer is compared before the pointer is followed, and
 * OpenSSL's own note of who owns the SSL object afterwards. */
static inline void *pf_ssl_of(const pf_openssl *library, PyObject *tls, PyObject *type, PyObject *context)
{
    const pf_ssl_socket *layout = (const pf_ssl_socket *)tls;

    if ((PyObject *)Py_TYPE(tls) != type || Py_TYPE(tls)->tp_basicsize < (Py_ssize_t)sizeof(pf_ssl_socket) ||
        layout->socket != NULL || layout->context != context || layout->ssl == NULL)
        return NULL;
    if (library->SSL_get_ex_data(layout->ssl, 0) != (void *)tls)
        return NULL;
    return layout->ssl;
}

/* Have the SSL object read from a descriptor, until the BIO that this returns is given to pf_descriptor_detach(), which
 * must happen. NULL if it cannot be had. */
static inline void *pf_descriptor_attach(const pf_openssl *library, void *ssl, int fd)
{
    void *bio;

    if (library->SSL_set_rfd(ssl, fd) != 1)
        return NULL;
    bio = library->SSL_get_rbio(ssl);
    library->BIO_up_ref(bio);
    return bio;
}

/* The descriptor is closed or about to be. The SSL object may be kept for longer, or be in the midst of a read: it must
 * not read from whatever gets the same number. */
static inline void pf_descriptor_forget(const pf_openssl *library, void *bio)
{
    int none = -1;

    library->BIO_ctrl(bio, PF_BIO_C_SET_FD, PF_BIO_NOCLOSE, &none);
}

static inline void pf_descriptor_detach(const pf_openssl *library, void *bio)
{
    pf_descriptor_forget(library, bio);
    library->BIO_free(bio);
}

/* Has OpenSSL take a FIN without close_notify for a close_notify. Otherwise it refuses to write from then on, though
 * our direction is still open. Who reads asks pf_ssl_is_at_eof() and is not deceived. */
static inline void pf_ssl_survive_eof(const pf_openssl *library, void *ssl)
{
    if (library->OpenSSL_version_num() >= PF_OPENSSL_3) {
        unsigned long long (*set)(void *, unsigned long long);

        memcpy(&set, &library->SSL_set_options, sizeof set);
        set(ssl, PF_SSL_OP_IGNORE_UNEXPECTED_EOF);
    }
}

/* Did OpenSSL come to the end of the descriptor? It reads a real close_notify before that. */
static inline int pf_ssl_is_at_eof(const pf_openssl *library, const void *ssl)
{
    return library->BIO_ctrl(library->SSL_get_rbio(ssl), PF_BIO_CTRL_EOF, 0, NULL) != 0;
}

#endif
