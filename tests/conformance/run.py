"""The Autobahn test suite (wstest) against our server and our client, compared with expected.json.

python -m tests.conformance.run [options]        see README.md

Exit status: 0 as expected, 1 not, 2 the suite could not be run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fnmatch
import glob
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import trustme

from ..support import free_port

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EXPECTED = HERE / "expected.json"
REQUIREMENTS = HERE / "requirements-wstest.txt"
VIRTUALENV = "virtualenv==20.15.1"  # the last that makes environments of Python 2.7

#: (behaviour, behaviour in closing) of each case
Results = dict[str, list[str]]


class SuiteError(Exception):
    """The suite could not be run."""


class Variant(NamedTuple):
    """What is under test."""

    side: str
    security: str
    loop: str

    def __str__(self) -> str:
        return "-".join(self)


VARIANTS = [
    Variant(*parts)
    for parts in itertools.product(("server", "client"), ("plain", "tls"), ("asyncio", "uvloop"))
] + [Variant(side, "plain", "sockets") for side in ("server", "client")]


class Files(NamedTuple):
    """PEM files."""

    authority: str
    certificate: str
    key: str


# --- wstest


def python2() -> str:
    """A Python 2.7 that works: $PYTHON2, one on PATH, or one of pyenv."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    candidates = [os.environ.get("PYTHON2"), shutil.which("python2.7"), shutil.which("python2")]
    candidates += sorted(glob.glob(f"{pyenv}/versions/2.7*/bin/python2.7"))
    for candidate in filter(None, candidates):
        check = "import ssl, sys; sys.exit(sys.version_info[:2] != (2, 7))"
        with contextlib.suppress(OSError):
            done = subprocess.run([candidate, "-c", check], stderr=subprocess.DEVNULL, check=False)
            if done.returncode == 0:
                return candidate
    raise SuiteError("no Python 2.7 with ssl found: set $PYTHON2, or install one with pyenv")


def checked(*command: str | Path, **environment: str) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SuiteError(f"{command[0]} failed:\n{done.stdout[-4000:]}")


def prepare(venv: Path) -> Path:
    """The Python of an environment with wstest, which is made if it is missing or outdated."""
    python, stamp = venv / "bin" / "python", venv / "made-from"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        print(f"making the environment of wstest in {venv} ...", flush=True)
        base = python2()
        shutil.rmtree(venv, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:  # nothing is installed into `base` itself
            checked(base, "-m", "pip", "install", "-q", "--target", folder, VIRTUALENV)
            checked(base, "-m", "virtualenv", "-q", "--no-download", venv, PYTHONPATH=folder)
        checked(python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS)
        stamp.write_text(REQUIREMENTS.read_text())
    return python


@contextlib.contextmanager
def running(*command: str | Path, log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, ended with the body."""
    with log.open("w") as output:
        options.setdefault("stdout", output)
        process = subprocess.Popen(
            [str(part) for part in command],
            stderr=output,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            **options,
        )
        try:
            yield process
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(process.pid, sign)
                        process.wait(60)
            if process.stdout is not None:
                process.stdout.close()


class Suite:
    """Runs cases for one variant. Reports and logs go to `folder`."""

    def __init__(self, wstest: Path, variant: Variant, files: Files, folder: Path) -> None:
        self.wstest = wstest
        self.variant = variant
        self.files = files if variant.security == "tls" else None
        self.folder = folder
        self.deadline = time.monotonic() + 1800
        folder.mkdir(parents=True)

    def run(self, cases: list[str], jobs: int) -> Results:
        shards = [cases[i::jobs] for i in range(min(jobs, len(cases)))]
        with contextlib.ExitStack() as stack:
            if self.variant.side == "server":
                self._against_server(stack, shards)
            else:
                self._against_clients(stack, shards)
        results: Results = {}
        for report in self.folder.glob("report*/index.json"):
            for by_case in json.loads(report.read_text()).values():
                for case, found in by_case.items():
                    results[case] = [found["behavior"], found["behaviorClose"]]
        return results

    def _against_server(self, stack: contextlib.ExitStack, shards: list[list[str]]) -> None:
        files = (self.files.certificate, self.files.key) if self.files else ()
        server = stack.enter_context(
            self._echo("server", self.variant.loop, *files, log="server", stdout=subprocess.PIPE)
        )
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        if not port:
            raise SuiteError(f"the server did not start; see {self.folder / 'server.log'}")
        target = {"agent": "picows_fast", "url": f"{self._scheme}://127.0.0.1:{port}"}
        specs = [self._spec(i, cases, servers=[target]) for i, cases in enumerate(shards)]
        self._wait([stack.enter_context(self._wstest("fuzzingclient", spec)) for spec in specs])
        if server.poll() is not None:
            raise SuiteError(f"the server ended by itself; see {self.folder / 'server.log'}")

    def _against_clients(self, stack: contextlib.ExitStack, shards: list[list[str]]) -> None:
        tls, authority = {}, ()
        if self.files:
            tls = {"cert": self.files.certificate, "key": self.files.key}
            authority = (self.files.authority,)
        clients = []
        for i, cases in enumerate(shards):
            port = free_port()
            url = f"{self._scheme}://127.0.0.1:{port}"
            # It writes its reports when it is ended.
            spec = self._spec(i, cases, url=url, **tls)
            stack.enter_context(self._wstest("fuzzingserver", spec, "-u", "0"))
            wait_until_listening(port)
            given = (self.variant.loop, url, "picows_fast", *authority)
            clients.append(stack.enter_context(self._echo("client", *given, log=f"client{i}")))
        self._wait(clients)
        if any(client.returncode for client in clients):
            raise SuiteError(f"a client failed; see {self.folder}/client*.log")

    def _wait(self, processes: list[subprocess.Popen[str]]) -> None:
        try:
            for process in processes:
                process.wait(self.deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            raise SuiteError(f"the cases did not end in time; see {self.folder}") from None

    @property
    def _scheme(self) -> str:
        return "wss" if self.files else "ws"

    def _spec(self, shard: int, cases: list[str], **more: Any) -> Path:
        path = self.folder / f"spec{shard}.json"
        spec = {"cases": cases, "exclude-cases": [], "exclude-agent-cases": {}}
        path.write_text(json.dumps(spec | {"outdir": str(self.folder / f"report{shard}")} | more))
        return path

    def _wstest(self, mode: str, spec: Path, *more: str) -> Any:
        command = (self.wstest, HERE / "wstest.py", "-m", mode, "-s", spec, *more)
        return running(*command, log=spec.with_suffix(".log"))

    def _echo(self, *arguments: str, log: str, **options: Any) -> Any:
        module = (sys.executable, "-m", "tests.conformance.echo")
        return running(*module, *arguments, log=self.folder / f"{log}.log", **options)


def wait_until_listening(port: int) -> None:
    for _ in range(600):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SuiteError("wstest does not listen")


@contextlib.contextmanager
def certificate() -> Iterator[Files]:
    """For 127.0.0.1, by an authority of its own."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    with contextlib.ExitStack() as stack:
        pems = (authority.cert_pem, issued.cert_chain_pems[0], issued.private_key_pem)
        yield Files(*(stack.enter_context(pem.tempfile()) for pem in pems))


# --- Results


def in_order(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


def differences(expected: Results, results: Results) -> list[str]:
    return [
        f"{case}: {'/'.join(results.get(case, ['missing']))}, expected {'/'.join(wanted)}"
        for case, wanted in expected.items()
        if results.get(case) != wanted
    ]


def summary(results: Results, expected: Results) -> str:
    counted = collections.Counter(behaviour for behaviour, _ in results.values())
    closing = collections.Counter(behaviour for _, behaviour in results.values())
    kinds = ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED")
    return " ".join(
        [f"cases={len(expected)}"]
        + [f"{kind}={counted[kind]}" for kind in kinds]
        + [f"bad-close={closing['FAILED'] + closing['UNCLEAN'] + closing['WRONG CODE']}"]
        + [f"missing={len(expected.keys() - results.keys())}"]
    )


def write_expected(expected: Results) -> None:
    lines = [f'  "{case}": {json.dumps(expected[case])}' for case in sorted(expected, key=in_order)]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="conformance")
    names = ", ".join(map(str, VARIANTS))
    parser.add_argument("--only", default="*", help=f"pattern of what to test: {names}")
    parser.add_argument("--cases", default="*", help="comma-separated patterns, such as 6.*,7.9.5")
    parser.add_argument("--jobs", type=int, default=2, help="wstest processes at once")
    parser.add_argument("--keep", metavar="FOLDER", help="leave reports and logs there")
    parser.add_argument("--venv", default=str(ROOT / ".venv-wstest"), help="wstest's environment")
    parser.add_argument("--update", action="store_true", help="make the results the expected ones")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    known: Results = json.loads(EXPECTED.read_text())
    patterns = args.cases.split(",")
    expected = {
        case: wanted
        for case, wanted in known.items()
        if any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns)
    }
    variants = [variant for variant in VARIANTS if fnmatch.fnmatchcase(str(variant), args.only)]
    if not expected or not variants:
        raise SuiteError("nothing matches --cases and --only")
    wstest = prepare(Path(args.venv).resolve())
    bad = False
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(certificate())
        folder = Path(args.keep or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        for variant in variants:
            started = time.monotonic()
            suite = Suite(wstest, variant, files, folder / str(variant))
            results = suite.run(sorted(expected, key=in_order), args.jobs)
            seconds = time.monotonic() - started
            print(f"{variant!s:22}{summary(results, expected)} {seconds:.0f} s", flush=True)
            found = differences(expected, results)
            for line in found:
                print(f"    {line}", flush=True)
            if args.update:
                expected |= results
            elif found:
                bad = True
    if args.update:
        write_expected(known | expected)
    return int(bad)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SuiteError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
