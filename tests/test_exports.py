"""The public API: all of it is exported, has documentation and is in the stubs."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import picows_fast

PACKAGE = Path(picows_fast.__file__).parent
STUBS = [
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.pyi")
]
# On Linux all of them are built.
EXTENSIONS = sorted(
    name for name in STUBS if sys.platform == "linux" or find_spec(f"picows_fast.{name}")
)
# Described in the stubs and the documentation: a value has no docstring.
VALUES = {"PICOWS_DEBUG_LL", "__version__"}


def extension(name: str) -> ModuleType:
    return importlib.import_module(f"picows_fast.{name}")


def stub(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name.replace('.', '/')}.pyi").read_text())


def stub_names(body: list[ast.stmt]) -> set[str]:
    """What is defined there, with `Class.member` for the members of classes."""
    names = set()
    for node in body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{name}" for name in stub_names(node.body)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def own_classes(module: ModuleType) -> list[type]:
    return [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def members(cls: type) -> list[str]:
    """The public attributes that the class itself defines."""
    return [name for name in vars(cls) if not name.startswith("_")]


def is_documented(cls: type, name: str) -> bool:
    """By itself, or, as Cython cannot give a plain attribute a docstring, in its class's."""
    if inspect.getdoc(inspect.getattr_static(cls, name)):
        return True
    for base in cls.__mro__:
        words = base.__doc__ or ""
        if name in vars(base) and (f"``{name}``" in words or f":param {name}:" in words):
            return True
    return isinstance(vars(cls)[name], int) or bool(inspect.getdoc(getattr(cls, name)))


def test_all_is_whole():
    exported = picows_fast.__all__
    assert len(set(exported)) == len(exported)
    defined = {
        name
        for name, value in vars(picows_fast).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert defined | {"__version__"} == set(exported)


def test_an_interpreter_without_the_gil_is_refused():
    code = "import sys; sys._is_gil_enabled = lambda: False; import picows_fast"
    # Isolated: nothing on PYTHONPATH imports the package before.
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert result.stderr.endswith(
        "ImportError: picows_fast needs the GIL: run Python without PYTHON_GIL=0 and -X gil=0\n"
    )


def test_star_import():
    namespace: dict[str, Any] = {}
    exec("from picows_fast import *", namespace)
    assert set(picows_fast.__all__) <= set(namespace)


@pytest.mark.parametrize("name", picows_fast.__all__)
def test_public_name_is_documented(name):
    value = getattr(picows_fast, name)
    if name in VALUES:
        assert isinstance(value, int | str)
        return
    assert value.__doc__, f"{name} has no docstring"
    # neither an inherited one nor what dataclass and enum generate
    assert not value.__doc__.startswith(f"{name}(")
    if inspect.isclass(value):
        assert all(value.__doc__ != base.__doc__ for base in value.__mro__[1:])


def homes() -> dict[str, str]:
    """The module that each public name is imported from."""
    return {
        alias.name: node.module or ""
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("name", picows_fast.__all__)
def test_public_name_is_in_the_stubs(name):
    """A module in Python is its own stub; `mypy --strict` checks that all of it is annotated."""
    home = homes()[name]
    suffix = "pyi" if home in EXTENSIONS else "py"
    place = home.replace(".", "/")
    place = f"{place}/__init__" if (PACKAGE / place).is_dir() else place
    source = ast.parse((PACKAGE / f"{place}.{suffix}").read_text())
    assert name in stub_names(source.body)
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("module_name", EXTENSIONS)
def test_extension_classes_are_documented(module_name):
    missing = []
    for cls in own_classes(extension(module_name)):
        if not cls.__doc__:
            missing.append(cls.__name__)
        missing += [
            f"{cls.__name__}.{name}" for name in members(cls) if not is_documented(cls, name)
        ]
    assert missing == []


@pytest.mark.parametrize("module_name", EXTENSIONS)
def test_extension_classes_are_in_the_stubs(module_name):
    """And what the stubs have is there."""
    module = extension(module_name)
    found = stub_names(stub(module_name).body)
    inherited = {
        f"{cls.__name__}.{name}"
        for cls in own_classes(module)
        for base in cls.__mro__[1:]
        for name in members(base)
    }
    wanted = {cls.__name__ for cls in own_classes(module)} | {
        f"{cls.__name__}.{name}" for cls in own_classes(module) for name in members(cls)
    }
    assert wanted - found - inherited == set()
    for name in found:
        target: Any = module
        for part in name.split("."):
            # not those that only newer Pythons have, such as __buffer__
            # nor the stub's own names for types
            if not part.startswith("__") and not (target is module and part.startswith("_")):
                target = getattr(target, part)
    assert module.__doc__


@pytest.mark.parametrize("name", [name for name in picows_fast.__all__ if name not in VALUES])
def test_public_members_are_documented(name):
    """Methods and properties of the public classes that are written in Python."""
    cls = getattr(picows_fast, name)
    if not inspect.isclass(cls) or cls.__module__.removeprefix("picows_fast.") in EXTENSIONS:
        return
    missing = [
        member
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and (inspect.isroutine(value) or isinstance(value, property))
        and not inspect.getdoc(getattr(cls, member))
    ]
    assert missing == []
