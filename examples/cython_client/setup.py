"""Builds fast_listener in place: python setup.py build_ext --inplace"""
# mypy: ignore-errors

from Cython.Build import cythonize
from setuptools import setup

# No include path and no library: picows_fast's .pxd files lie beside its modules, where Cython
# finds them, and need no C header.
setup(name="fast_listener", ext_modules=cythonize("fast_listener.pyx"))
