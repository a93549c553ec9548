/*
 * What a method whose first argument is a WSMsgType says if it gets something else: the generated conversion to a C
 * enum says "an integer is required", and names neither the method nor what is missing.
 *
 * PF_MSG_TYPE_FIRST(name) defines pf_explain_name(type), which puts a function in front of the one that Cython made for
 * `name` of `type`. It passes the arguments on, and looks at them only when the call has failed.
 */
#ifndef PF_MSG_TYPE_FIRST_H
#define PF_MSG_TYPE_FIRST_H

#include <Python.h>

typedef PyObject *(*pf_fast_method)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

static void pf_explain_first(const char *name, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (!PyErr_ExceptionMatches(PyExc_TypeError))
        return;
    if (count == 0 && names != NULL && PyTuple_GET_SIZE(names) != 0)
        return; /* the arguments have names, and so has the error */
    if (count != 0 && PyIndex_Check(args[0]))
        return;
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError,
                 "%s() takes a WSMsgType first, then the message, as in %s(WSMsgType.TEXT, \"hello\"); "
                 "got %.100s first", name, name, count == 0 ? "nothing" : Py_TYPE(args[0])->tp_name);
}

#define PF_MSG_TYPE_FIRST(name)                                                                                        \
    static pf_fast_method pf_generated_##name;                                                                         \
                                                                                                                       \
    static PyObject *pf_checked_##name(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)       \
    {                                                                                                                  \
        PyObject *result = pf_generated_##name(self, args, count, names);                                              \
                                                                                                                       \
        if (result == NULL)                                                                                            \
            pf_explain_first(#name, args, count, names);                                                               \
        return result;                                                                                                 \
    }                                                                                                                  \
                                                                                                                       \
    static void pf_explain_##name(PyObject *type)                                                                      \
    {                                                                                                                  \
        PyObject *found = PyDict_GetItemString(((PyTypeObject *)type)->tp_dict, #name);                                \
        PyMethodDef *method;                                                                                           \
                                                                                                                       \
        if (found == NULL || Py_TYPE(found) != &PyMethodDescr_Type)                                                    \
            return;                                                                                                    \
        method = ((PyMethodDescrObject *)found)->d_method;                                                             \
        if (method->ml_flags == (METH_FASTCALL | METH_KEYWORDS)) {                                                     \
            pf_generated_##name = (pf_fast_method)(void (*)(void))method->ml_meth;                                     \
            method->ml_meth = (PyCFunction)(void (*)(void))pf_checked_##name;                                          \
        }                                                                                                              \
    }

#endif
