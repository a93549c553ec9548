"""The C headers of protocol/wire: built and run without Python, by every compiler at hand.

What the headers must do is checked in tests/wire/test_wire.c; this module owns how that program is
built: compilers, warnings, options, sanitizers, instruction sets, and C++.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "picows_fast"
PROGRAM = ROOT / "tests" / "wire" / "test_wire.c"
HEADERS = sorted((PACKAGE / "protocol" / "wire").glob("*.h"))

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
X86_64 = platform.machine() in ("x86_64", "AMD64")

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the test program needs mmap and a POSIX compiler"
)


def find(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def build(compiler: str, source: Path, output: Path, *options: str) -> None:
    command = [find(compiler), *WARNINGS, *options, f"-I{PACKAGE}", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert re.search(r"^utf8: \d{7,} checks, 0 failed$", done.stdout, re.MULTILINE), done.stdout
    return done.stdout


def implementations(output: str) -> set[str]:
    return set(re.findall(r"^mask implementation: (\w+)$", output, re.MULTILINE))


def selected(output: str) -> str:
    match = re.search(r"^mask selected: (\w+)$", output, re.MULTILINE)
    assert match is not None, output
    return match[1]


def require_sanitizers(compiler: str, tmp_path: Path) -> None:
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    command = [find(compiler), *SANITIZERS, str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler} has no sanitizer runtime")


def how_far(options: list[str], thorough: bool) -> list[str]:
    """The exhaustive loops take four times as long with sanitizers."""
    return ["quick"] if options is SANITIZERS and not thorough else []


@pytest.mark.parametrize(
    "options",
    [["-O2"], ["-O3", "-march=native"], SANITIZERS],
    ids=["O2", "O3-native", "sanitizers"],
)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_implementation(
    compiler: str, options: list[str], thorough: bool, tmp_path: Path
) -> None:
    if options is SANITIZERS:
        require_sanitizers(compiler, tmp_path)
    program = tmp_path / "test_wire"
    build(compiler, PROGRAM, program, "-std=c99", *options)
    output = run(program, *how_far(options, thorough))
    assert "scalar" in implementations(output)
    assert selected(output) in implementations(output)
    if X86_64:
        assert "sse2" in implementations(output)


@pytest.mark.parametrize("options", [["-O2"], SANITIZERS], ids=["O2", "sanitizers"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_without_simd(compiler: str, options: list[str], thorough: bool, tmp_path: Path) -> None:
    if options is SANITIZERS:
        require_sanitizers(compiler, tmp_path)
    program = tmp_path / "test_wire"
    build(compiler, PROGRAM, program, "-std=c99", "-DPF_NO_SIMD", *options)
    output = run(program, *how_far(options, thorough))
    assert implementations(output) == {"scalar"}
    assert selected(output) == "scalar"


@pytest.mark.parametrize("options", [[], ["-DPF_NO_SIMD"]], ids=["neon", "scalar"])
def test_aarch64(options: list[str], tmp_path: Path) -> None:
    emulator = find("qemu-aarch64-static")
    program = tmp_path / "test_wire"
    build("aarch64-linux-gnu-gcc", PROGRAM, program, "-std=c99", "-O2", "-static", *options)
    output = run(emulator, program, "quick")
    assert selected(output) == ("scalar" if options else "neon")


@pytest.mark.skipif(not X86_64, reason="needs an x86-64 compiler")
@pytest.mark.parametrize(("cpu", "expected"), [("Nehalem", "sse2"), ("Haswell", "avx2")])
def test_older_x86_cpus(cpu: str, expected: str, tmp_path: Path) -> None:
    """A CPU without the wider vectors gets what it has, from the same program."""
    emulator = find("qemu-x86_64-static")
    program = tmp_path / "test_wire"
    build("gcc", PROGRAM, program, "-std=c99", "-O2", "-static")
    output = run(emulator, "-cpu", cpu, program, "quick")
    if expected == "avx2" and selected(output) == "sse2":
        pytest.skip("this emulator does not know AVX2")
    assert selected(output) == expected
    assert "avx512" not in implementations(output)


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
@pytest.mark.parametrize(
    ("compiler", "standard"),
    [
        ("gcc", "c99"),
        ("clang", "c99"),
        ("g++", "c++17"),
        ("clang++", "c++17"),
    ],
)
def test_each_header_alone(compiler: str, standard: str, header: Path, tmp_path: Path) -> None:
    """A header needs no other before it, may come twice, and warns of nothing it leaves unused."""
    language = "c++" if standard.startswith("c++") else "c"
    source = tmp_path / "alone.c"
    source.write_text(
        f'#include "protocol/wire/{header.name}"\n#include "protocol/wire/{header.name}"\n'
        "int one_symbol(void);\nint one_symbol(void) { return 1; }\n"
    )
    build(compiler, source, tmp_path / "alone.o", "-x", language, f"-std={standard}", "-O2", "-c")


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_cpp(compiler: str, tmp_path: Path) -> None:
    source = tmp_path / "use.cpp"
    source.write_text(
        '#include "protocol/wire/frame.h"\n#include "protocol/wire/mask.h"\n'
        '#include "protocol/wire/utf8.h"\n'
        "int main() {\n"
        "    uint8_t key[4] = {1, 2, 3, 4}, bytes[300] = {}, out[14];\n"
        "    pf_frame_header header;\n"
        "    pf_mask(bytes, bytes, sizeof bytes, key, 0);\n"
        "    size_t size = pf_write_frame_header(out, PF_OPCODE_TEXT, 1, 0, 300, key);\n"
        "    if (pf_read_frame_header(out, size, &header) != PF_FRAME_OK) return 1;\n"
        "    if (header.payload_size != 300 || bytes[299] != 4) return 2;\n"
        "    return pf_utf8_feed(PF_UTF8_ACCEPT, bytes, sizeof bytes) == PF_UTF8_ACCEPT ? 0 : 3;\n"
        "}\n"
    )
    build(compiler, source, tmp_path / "use", "-std=c++17", "-O2")
    subprocess.run([str(tmp_path / "use")], check=True)


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
def test_what_a_header_may_use(header: Path) -> None:
    """Only the C library's types and memcpy, and the intrinsics: no Python.h, allocation or I/O."""
    text = header.read_text()
    included = set(re.findall(r"^#include\s*(\S+)", text, re.MULTILINE))
    assert included <= {
        "<stddef.h>",
        "<stdint.h>",
        "<string.h>",
        "<immintrin.h>",
        "<emmintrin.h>",
        "<intrin.h>",
        "<arm_neon.h>",
    }
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    forbidden = "malloc|calloc|realloc|free|printf|fprintf|abort|exit|send|recv|read|write"
    assert not re.search(rf"\b({forbidden})\s*\(", code)


def test_pxd_declares_what_the_headers_define() -> None:
    """Nothing in wire.pxd is missing from the headers, and no error code from wire.pxd."""
    declared = set(re.findall(r"\b(?:pf|PF)_\w+", (PACKAGE / "protocol" / "wire.pxd").read_text()))
    defined = {
        name for header in HEADERS for name in re.findall(r"\b(?:pf|PF)_\w+", header.read_text())
    }
    assert declared <= defined
    errors = {name for name in defined if re.match(r"PF_(ERR|FRAME|OPCODE)_", name)}
    assert errors - {"PF_ERR_"} <= declared
