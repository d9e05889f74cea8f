"""A process that embeds opens no socket and writes nothing outside of its cache, by strace(1)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Campaign

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed (apt-get install strace)")

CALLS = (
    *("socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg"),
    *("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "link", "linkat", "symlink"),
    *("symlinkat", "unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2", "truncate", "chmod", "fchmodat"),
    *("chown", "lchown", "fchownat", "utimensat", "utime", "utimes", "futimesat", "setxattr", "lsetxattr"),
)
NETWORK = frozenset(CALLS[: CALLS.index("open")])
CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")
DEVICES = ("/dev/null", "/dev/tty", "/dev/pts/")


def offences(trace: str, cache: str) -> list[str]:
    """Return the lines of a trace that open a socket, or change something outside of ``cache``.

    A call that failed counts, too, because the process tried it.
    """
    found = []
    for line in trace.splitlines():
        match = CALL.match(line)
        if match is None:
            continue
        name, rest = match.groups()
        if name in NETWORK:
            found.append(line)
        elif name not in ("open", "openat", "openat2") or WRITING.search(rest):
            paths = PATH.findall(rest)
            if not paths or not all(is_allowed(path, cache) for path in paths):
                found.append(line)
    return found


def is_allowed(path: str, cache: str) -> bool:
    """Return whether a process may write there."""
    return path == cache or path.startswith((f"{cache}/", *DEVICES))


def traced(command: list[str], tmp_path: Path, **environment: str) -> str:
    """Run a command. Return the system calls of the command and of all processes that it starts."""
    log = tmp_path / "strace.log"
    assert STRACE is not None
    done = subprocess.run(
        [STRACE, "-f", "-s", "4096", "-e", "trace=" + ",".join(f"?{call}" for call in CALLS), "-o", str(log), *command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=1500,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
    )
    if "ptrace" in done.stderr.lower() and "not permitted" in done.stderr.lower():
        pytest.skip("this container does not permit ptrace")
    assert done.returncode == 0, done.stderr
    return log.read_text("utf-8", "replace")


EMBED = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], device="cpu")
loader.start_loading()
provider = loader.get_provider()
provider.embed_query("[MASK] how do I reset my password?")
provider.encode([f"text {number}" for number in range(50)])
"""
FIRSTVEC = str(Path(sys.executable).with_name("firstvec"))
COMMANDS = {
    "INT8 through the C API": ([sys.executable, "-c", EMBED, "{bundle}", "quantized"], {}),
    "fp32, with a hand-over": (
        [sys.executable, "-c", EMBED + "import time; time.sleep(1)", "{bundle}", "progressive"],
        {},
    ),
    "the Python binding": (
        [sys.executable, "-c", EMBED, "{bundle}", "quantized"],
        {"FIRSTVEC_ONNXRUNTIME": "binding"},
    ),
    "TorchScript": ([sys.executable, "-c", "import torch\n" + EMBED, "{bundle}", "cached"], {}),
    "firstvec encode": ([FIRSTVEC, "encode", "--model", "{bundle}", "text"], {}),
    "firstvec verify": ([FIRSTVEC, "verify", "--model", "{bundle}"], {}),
    "firstvec doctor": ([FIRSTVEC, "doctor"], {}),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_process_that_embeds_opens_no_socket_and_writes_in_its_cache_only(
    what: str, bundle: Path, tmp_path: Path, campaign: Campaign
) -> None:
    if not campaign.full and what in ("TorchScript", "firstvec doctor"):
        pytest.skip("it takes long, and runs in make faults")
    command, environment = COMMANDS[what]
    command = [part.replace("{bundle}", str(bundle)) for part in command]
    cache, home = tmp_path / "cache", tmp_path / "home"
    home.mkdir()
    calls = []
    for state in ("empty", "warm"):
        trace = traced(
            command, tmp_path, FIRSTVEC_CACHE=str(cache), HOME=str(home), XDG_CACHE_HOME=str(home), **environment
        )
        assert offences(trace, str(cache)) == [], state
        calls.append(len(trace.splitlines()))
        if what != "firstvec doctor":
            assert "verified" in trace  # the trace has the markers, so it is not empty
    assert list(home.iterdir()) == []
    campaign.record("no socket, no write outside the cache", **{what: f"{calls[0]} calls cold, {calls[1]} warm"})


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "open('left-behind', 'w')",
        "import os; os.mkdir('folder')",
        "import contextlib, os\nwith contextlib.suppress(OSError): os.open('/nonexistent/file', os.O_RDWR)",
        "import os; os.unlink('a-file')",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', \"open('left-behind', 'a')\"], check=True)",
        "import threading; t = threading.Thread(target=open, args=('left-behind', 'w')); t.start(); t.join()",
    ],
)
def test_the_trace_shows_a_socket_or_a_write_elsewhere(code: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    assert offences(traced([sys.executable, "-c", code], tmp_path), str(tmp_path / "cache"))


def test_the_trace_of_a_process_that_only_reads_has_no_offence(tmp_path: Path) -> None:
    code = "import json, os; open(os.devnull, 'w').close()"
    assert offences(traced([sys.executable, "-c", code], tmp_path), str(tmp_path / "cache")) == []
