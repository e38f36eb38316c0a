"""Hostile outputs, addresses, visitors and texts: what each of them may not reach."""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
import typer.main
from psycopg import sql

from tests.support.commands import Cli, cli, complete, connected, findings
from tests.support.world import World, recorded
from vidgen_worker.cli import app
from vidgen_worker.domain.faults import Fault
from vidgen_worker.media import children as media_children
from vidgen_worker.media import public_address
from vidgen_worker.media.outputs import Media
from vidgen_worker.media.public_address import (
    NotPublicError,
    is_public,
    only_public,
    public_sockets,
    refusal,
)
from vidgen_worker.sandbox.control import RunwayControl
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.telemetry import events
from vidgen_worker.telemetry.loopback_http import MOST_CONNECTIONS
from vidgen_worker.telemetry.metrics import Metrics, serving

__all__ = ["cli", "complete", "connected"]

ROOT = Path(__file__).parents[2]
LARGE = 1_000_000

# A file that has taken libav over: what it tries, in the place of a look at a picture.

HIJACKED = """
import ctypes, errno, json, os, pathlib, signal, socket, sys, threading
sys.path.insert(0, {root!r})
from vidgen_worker.media import child as media_child

worker = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def look(job):
    {body}

media_child.JOBS["image"] = look
media_child.REAP_SECONDS = 1
{before}
media_child.main({large})
"""


class Hijacked:
    """The module under test, whose child runs `body` for each file; `url` is the file's path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.media = Media(children=1, max_image_bytes=LARGE, max_video_bytes=LARGE)

    def by(self, body: str, before: str = "") -> None:
        """Let the next child run this."""
        program = self.folder / "media_child.py"
        indented = body.strip("\n").replace("\n", "\n    ")
        program.write_text(
            HIJACKED.format(root=str(ROOT), body=indented, before=before, large=LARGE)
        )
        self.monkeypatch.setattr(media_children, "_CHILD", program)

    async def look(self, name: str = "output") -> str:
        """Look at a file in a folder of its own; return what the fault says."""
        own = self.folder / "scratch" / name
        own.mkdir(parents=True, exist_ok=True)
        (own / "output").write_bytes(b"x")
        with pytest.raises(Fault) as raised:
            await self.media.check_image(own / "output", "16:9")
        return f"{raised.value.name}: {raised.value.details}"


@pytest.fixture
async def hijacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hijacked]:
    hijacked = Hijacked(tmp_path, monkeypatch)
    yield hijacked
    await hijacked.media.aclose()


# By whose wall each is refused: the test asks for what holds on this kernel.
ATTEMPTS = {
    "seccomp": {
        "a socket of the Internet": "socket.socket()",
        "a socket of IPv6": "socket.socket(socket.AF_INET6)",
        "a socket of this machine": "socket.socket(socket.AF_UNIX)",
        "a raw socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "a pair of sockets": "socket.socketpair()",
        "a process": "os.fork() or os._exit(0)",
        "a program": "os.execv('/nowhere', ['nowhere'])",
        "a program that nobody sees": "os.memfd_create('x')",
        "a signal to the worker": "os.kill(worker, 0)",
        "a signal to all": "os.kill(-1, 0)",
        "a signal to a thread of the worker": "call({tgkill}, worker, worker, 0)",
        "a signal by a descriptor": "os.pidfd_open(worker)",
        "the limits of the worker": "__import__('resource').prlimit(worker, 7)",
        "the memory of the worker": "call({process_vm_readv}, worker, 0, 0, 0, 0, 0)",
        "the worker's next step": "call({ptrace}, 16, worker, 0, 0)",
        "another life for its parent's death": "call({prctl}, 1, 0, 0, 0, 0)",
        "a door for root": "os.chmod(job['path'], 0o4777)",
        "another owner": "os.chown(job['path'], 0, 0)",
        "another time": "os.utime(job['path'], (0, 0))",
        "a mark": "os.setxattr(job['path'], 'user.x', b'x')",
        "a link": "os.symlink('/etc/passwd', job['path'] + '.link')",
        "a second name": "os.link(job['path'], job['path'] + '.hard')",
        "a pipe with a name": "os.mkfifo(job['path'] + '.fifo')",
        "another world": "call({unshare}, 0x10000000)",
        "another root": "os.chroot(os.path.dirname(job['path']))",
        "a ring": "call(425, 1, 0)",
        "a program of the kernel": "call({bpf}, 0, 0, 0)",
        "a counter of the kernel": "call({perf_event_open}, 0, 0, 0, 0, 0)",
        "shared memory": "call({shmget}, 0, 4096, 0o1600)",
        "a key of the kernel": "call({keyctl}, 0, -3, 1)",
        "a call of a newer kernel": "call(462, 0, 0, 0)",
    },
    "Landlock": {
        "the passwords": "open('/etc/passwd').read()",
        "the environment of the worker": "open(f'/proc/{{worker}}/environ').read()",
        "its own memory": "open('/proc/self/mem', 'rb')",
        "a folder of the machine": "os.listdir('/')",
        "the folder of all files": "os.listdir(pathlib.Path(job['path']).parents[1])",
        "a neighbour's file": "open(pathlib.Path(job['path']).parents[1] / 'neighbour/output')",
        "a way round": "open(os.path.dirname(job['path']) + '/../neighbour/output')",
        "a neighbour's folder": "open(pathlib.Path(job['path']).parents[1] / 'neighbour/x', 'w')",
        "the end of a neighbour": "os.unlink(pathlib.Path(job['path']).parents[1] / "
        "'neighbour/output')",
        "a file for everybody": "open(pathlib.Path(job['path']).parents[2] / 'hijacked', 'w')",
        "a library of ours": "open(media_child.__file__, 'a')",
        "a folder of its own": "os.mkdir(job['path'] + '.folder')",
        "a device": "open('/dev/null')",
    },
}  # fmt: skip
REFUSED = {"PermissionError", "OSError"}
"""EPERM or EACCES, and ENOSYS of a call that this kernel is not to know."""
WANTED = {
    "its file": "open(job['path']).read()",
    "a new file beside it": "pathlib.Path(job['target']).write_text('x')",
    "its end": "os.unlink(job['target'])",
    "a thread": "threading.Thread(target=int).start()",
    "Python's own files": "open(json.__file__).read()",
    "the time": "__import__('time').sleep(0)",
    "its own limits": "__import__('resource').getrlimit(7)",
}
NUMBERS = {
    "x86_64": {
        "tgkill": 234, "process_vm_readv": 310, "ptrace": 101, "prctl": 157, "unshare": 272,
        "bpf": 321, "perf_event_open": 298, "shmget": 29, "keyctl": 250,
    },
    "aarch64": {
        "tgkill": 131, "process_vm_readv": 270, "ptrace": 117, "prctl": 167, "unshare": 97,
        "bpf": 280, "perf_event_open": 241, "shmget": 194, "keyctl": 219,
    },
}  # fmt: skip


def tried(attempts: dict[str, str]) -> str:
    """Write a body that tries each and says how it ended."""
    numbers = NUMBERS.get(os.uname().machine, NUMBERS["x86_64"])
    lines = ["found = {}"]
    for name, attempt in attempts.items():
        lines += [
            "try:",
            f"    {attempt.format(**numbers)}",
            f"    found[{name!r}] = 'done'",
            "except Exception as error:",
            f"    found[{name!r}] = type(error).__name__",
        ]
    return "\n".join([*lines, "raise media_child.UndecodableError(json.dumps(found))"])


async def outcomes(hijacked: Hijacked, attempts: dict[str, str]) -> dict[str, str]:
    hijacked.by(tried(attempts))
    said = await hijacked.look()
    found: dict[str, str] = json.loads(said[said.index("{") :])
    return found


@pytest.mark.parametrize("wall", ATTEMPTS)
async def test_a_file_that_has_taken_libav_over_can_reach_nothing_else(
    hijacked: Hijacked, wall: str
) -> None:
    neighbour = hijacked.folder / "scratch" / "neighbour"
    neighbour.mkdir(parents=True)
    (neighbour / "output").write_text("another user's")
    found = await outcomes(hijacked, ATTEMPTS[wall])
    assert set(found) == set(ATTEMPTS[wall])
    reached = {name: how for name, how in found.items() if how not in REFUSED}
    missing = [said for said in hijacked.media.lacking if said.startswith(wall)]
    # A kernel without this wall says so, and is no reason for a red test.
    assert bool(reached) <= bool(missing), reached
    if not missing:
        assert (neighbour / "output").read_text() == "another user's"


async def test_what_decoding_needs_is_not_refused(hijacked: Hijacked) -> None:
    found = await outcomes(hijacked, WANTED)
    assert found == dict.fromkeys(WANTED, "done")


async def test_no_file_sees_what_the_one_before_it_has_done(hijacked: Hijacked) -> None:
    """Each has a process of its own, and none is left."""
    hijacked.by(
        "seen, look.seen = getattr(look, 'seen', 'nothing'), 'something'\n"
        "raise media_child.UndecodableError(f'saw {seen} in {os.getpid()}')"
    )
    first, second = await hijacked.look("one"), await hijacked.look("two")
    assert "saw nothing" in first
    assert "saw nothing" in second
    [template] = hijacked.media.child_pids
    looked = {int(re.findall(r"in (\d+)", said)[-1]) for said in (first, second)}
    assert len(looked | {template}) == 3
    for pid in looked:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


LIES = {
    "a file of the machine": "return {'file': '/etc/hostname', 'sha256': '0' * 64}",
    "a neighbour's file": "return {'file': str(pathlib.Path(job['path']).parents[1] / "
    "'neighbour/output'), 'sha256': '0' * 64}",
    "a way round": "return {'file': os.path.dirname(job['path']) + '/../neighbour/output', "
    "'sha256': '0' * 64}",
    "nothing": "return {}",
    "a number for a name": "return {'file': 7}",
    "more than there is": "return {'file': job['path'], 'sha256': 'x'}",
    "a digest of nothing": "return {'file': job['path'], 'sha256': None}",
    "an endless clip": "return {'file': job['path'], 'sha256': '0' * 64, 'seconds': 1e300}",
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_child_is_not_believed_another_file(hijacked: Hijacked, lie: str) -> None:
    neighbour = hijacked.folder / "scratch" / "neighbour"
    neighbour.mkdir(parents=True)
    (neighbour / "output").write_text("another user's")
    # What the process answers, without the look at the file that an honest one takes.
    before = "media_child._stored = lambda job, found: found"
    hijacked.by(LIES[lie], before)
    assert (await hijacked.look()).startswith("output_undecodable: ")


WORDS = {
    "nonsense": ("os.write(out(), b'nonsense' + bytes([10]))", "broke the process"),
    "a list": ("os.write(out(), b'[1]' + bytes([10]))", "broke the process"),
    "two answers": (
        "os.write(out(), b'{\"no_output\": \"a\"}' + bytes([10]) + b'{}' + bytes([10]))",
        "broke the process",
    ),
    "much": ("os.write(out(), b'x' * 40_000)", "broke the process"),
    "its own death": ("os.abort()", "SIGABRT and again"),
    "silence": ("os.closerange(3, 64)\nsignal.pause()", "SIGALRM and again"),
}
# The pipe on which a process answers is the one descriptor of its own that is a pipe and not stdin.
OUT = """
def out():
    import stat
    return max(n for n in range(3, 64) if _is_pipe(n))
def _is_pipe(n):
    import stat
    try:
        return stat.S_ISFIFO(os.fstat(n).st_mode)
    except OSError:
        return False
"""


@pytest.mark.parametrize("words", WORDS)
async def test_whatever_a_process_answers_is_a_verdict_about_its_file(
    hijacked: Hijacked, words: str
) -> None:
    said, verdict = WORDS[words]
    bad = said.replace("\n", "\n    ")
    hijacked.by(
        f"if job['path'].endswith('bad/output'):\n    {bad}\n    signal.pause()\n"
        "raise media_child.UndecodableError('looked at')",
        OUT,
    )
    found = await hijacked.look("bad")
    assert found.startswith("output_undecodable: ")
    assert verdict in found
    assert "looked at" in await hijacked.look("good")


async def test_a_machine_without_room_for_a_process_blames_no_file(hijacked: Hijacked) -> None:
    hijacked.by(
        "raise media_child.UndecodableError('looked at')",
        # The kernel's answer to the second fork: the first one tries the walls.
        "real, forks = os.fork, []\n"
        "def fork():\n"
        "    forks.append(1)\n"
        "    if len(forks) == 2:\n"
        "        raise BlockingIOError(errno.EAGAIN, 'Resource temporarily unavailable')\n"
        "    return real()\n"
        "os.fork = fork\n",
    )
    found = await hijacked.look("one")
    assert found.startswith("scratch_unavailable: ")
    assert "no process can be started" in found
    assert "looked at" in await hijacked.look("two")


async def test_a_machine_that_lacks_a_wall_says_so_once(hijacked: Hijacked) -> None:
    hijacked.by(
        "raise media_child.UndecodableError('looked at')",
        "from vidgen_worker.media import walls\nwalls._ARCHITECTURES = {}",
    )
    with recorded() as heard:
        assert "looked at" in await hijacked.look("one")
        assert "looked at" in await hijacked.look("two")
    said = [event.lacking for event in heard if isinstance(event, events.MediaWallsLacking)]
    assert len(said) == 1
    assert f"seccomp: there is no list of system calls for {os.uname().machine}" in said[0]


def test_a_process_whose_parent_has_ended_ends_too() -> None:
    """The kernel ends it with its parent; where that was faster, the process does it itself."""
    program = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from vidgen_worker.media.walls import raise_walls\n"
        "raise_walls(None, os.getpid())\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


# Where an output may come from.

PRIVATE = [
    "0.0.0.0",  # noqa: S104 - nothing is bound to it
    "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1",
    "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "168.63.129.16",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "2001::1", "2001:db8::1", "3fff::1", "2001:2::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2606:4700::5efe:7f00:1",
    "2606:4700::200:5efe:a00:1", "", "example.com", "127.1", "0x7f000001",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "172.32.0.1", "192.0.1.1", "100.128.0.1", "2606:4700:4700::1111",
    "2a00:1450:4001::1", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_the_internets_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://1.1.1.1/a", "the scheme http"),
        ("ftp://1.1.1.1/a", "the scheme ftp"),
        ("https://1.1.1.1:22/a", "the port 22"),
        ("https://1.1.1.1:8443/a", "the port 8443"),
        ("https://somebody@1.1.1.1/a", "a user's name"),
        ("https://:word@1.1.1.1/a", "a user's name"),
        ("https://127.0.0.1/a", "127.0.0.1"),
        ("https://2130706433/a", "127.0.0.1"),
        ("https://0x7f.1/a", "127.0.0.1"),
        ("https://127.1/a", "127.0.0.1"),
        ("https://[::1]/a", "::1"),
        ("https://[::ffff:a00:1]/a", "private address"),
        ("https://localhost/a", "private address"),
    ],
)
async def test_a_url_that_is_not_public_https_is_refused_before_anything_is_opened(
    url: str, said: str
) -> None:
    found = await refusal(httpx.URL(url))
    assert found is not None
    assert said in found


async def test_the_sandbox_reaches_loopback_and_no_other_private_place() -> None:
    for url in ("http://127.0.0.1:9/a", "http://[::1]:9/a", "https://1.1.1.1/a"):
        assert await refusal(httpx.URL(url), allow_loopback=True) is None
    for url in ("http://10.0.0.1/a", "http://169.254.169.254/a", "http://[fd00::1]/a",
                "http://[64:ff9b::7f00:1]/a", "file:///etc/passwd"):  # fmt: skip
        assert await refusal(httpx.URL(url), allow_loopback=True) is not None


@pytest.fixture
def listening() -> Iterator[SimpleNamespace]:
    """Provide a port of loopback that keeps what it is sent."""
    got = SimpleNamespace(port=0, connections=0, sent=b"", told=threading.Event())
    with socket.create_server(("127.0.0.1", 0)) as server:
        got.port = server.getsockname()[1]

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    got.connections += 1
                    with connection:
                        got.sent += connection.recv(9999)
                    got.told.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield got
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


async def test_a_name_that_resolves_privately_the_second_time_is_sent_nothing(
    listening: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It resolves to a public address when it is looked at, and to loopback when it is asked."""
    resolve, asked = socket.getaddrinfo, []

    def changing(host: str, port: Any, *rest: Any, **more: Any) -> Any:  # noqa: ANN401 - as the real one
        asked.append(host)
        place = "1.1.1.1" if len(asked) == 1 else "127.0.0.1"
        return resolve(place, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    monkeypatch.setattr(public_address, "HTTPS_PORT", listening.port)
    media = Media(max_image_bytes=LARGE, max_video_bytes=LARGE)
    with pytest.raises(Fault, match=r"leads to the private address 127\.0\.0\.1") as raised:
        await media.download(f"https://cdn.example:{listening.port}/a", tmp_path / "a", LARGE)
    await media.aclose()
    assert raised.value.name == "output_unavailable"
    assert len(asked) == 2
    assert (listening.connections, listening.sent) == (0, b"")


@pytest.mark.usefixtures("transport")
async def test_a_file_server_receives_no_secret(
    listening: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    media = Media(max_image_bytes=LARGE, max_video_bytes=LARGE, allow_loopback=True)
    with pytest.raises(Fault):
        await media.download(f"http://127.0.0.1:{listening.port}/a", tmp_path / "a", LARGE)
    await media.aclose()
    assert listening.told.wait(60)
    head, _, body = listening.sent.partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert head.startswith(b"GET /a ")
    assert names == {b"host", b"accept", b"accept-encoding", b"connection", b"user-agent"}
    assert body == b""


async def test_an_address_of_this_machine_itself_is_not_public() -> None:
    """A server's own public address leads to what only it should reach."""
    trace = only_public(httpx.URL("https://cdn.example/a"))
    closed = []

    async def aclose() -> None:
        closed.append(True)

    places = {"server_addr": ("8.8.8.8", 443), "client_addr": ("8.8.8.8", 50_000)}
    stream = SimpleNamespace(get_extra_info=places.get, aclose=aclose)
    await trace("connection.connect_tcp.started", {"host": "cdn.example"})
    with pytest.raises(NotPublicError):
        await trace("connection.connect_tcp.complete", {"return_value": stream})
    assert closed == [True]
    places["client_addr"] = ("192.168.0.2", 50_000)
    await trace("connection.connect_tcp.complete", {"return_value": stream})


def test_no_socket_is_made_for_this_machine_s_own_public_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, family = public_sockets(), socket.AF_INET
    own, other = ("127.0.0.1", 443), ("127.0.0.2", 443)
    with pytest.raises(NotPublicError):
        make((family, socket.SOCK_STREAM, 0, "", other))
    # As if loopback were an address of the Internet's.
    monkeypatch.setattr(public_address, "is_public", lambda _: True)
    with pytest.raises(NotPublicError):
        make((family, socket.SOCK_STREAM, 0, "", own))
    make((family, socket.SOCK_STREAM, 0, "", other)).close()


async def test_what_a_proxy_reaches_is_the_proxys_business(
    listening: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listening.port}")
    media = Media(max_image_bytes=LARGE, max_video_bytes=LARGE)
    with pytest.raises(Fault) as raised:
        await media.download("https://1.1.1.1/a", tmp_path / "a", LARGE)
    await media.aclose()
    assert "leads to" not in str(raised.value.details)
    assert listening.told.wait(60)
    assert listening.sent.startswith(b"CONNECT 1.1.1.1:443")
    assert b"authorization" not in listening.sent.lower()


# Servers of ours.


@pytest.fixture
def port() -> Iterator[int]:
    with serving(Metrics(), 0, alive=lambda: True, ready=lambda: False) as port:
        assert port is not None
        yield port


def test_a_connection_that_stays_open_keeps_no_other_from_an_answer(port: int) -> None:
    half = [b"", b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: "]
    several = []
    with contextlib.ExitStack() as stack:
        for number in range(4 * MOST_CONNECTIONS):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            with contextlib.suppress(OSError):  # closed already: one of too many
                idle.sendall(half[number % len(half)])
            several.append(idle)
        for path, status in (("healthz", 200), ("readyz", 503), ("metrics", 200)):
            assert httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=30).status_code == status
        # Their descriptors are needed for other things: only so many are kept.
        assert sum(map(is_open, several)) <= MOST_CONNECTIONS


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_metrics_are_only_read(port: int, method: str) -> None:
    answer = httpx.request(method, f"http://127.0.0.1:{port}/metrics")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_head_has_no_body(port: int) -> None:
    answer = httpx.head(f"http://127.0.0.1:{port}/metrics?name[]=x")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("line", [b"nonsense", b"GET /", b"GET http://evil/ HTTP/1.1", b"\0\xff"])
def test_a_line_that_is_no_request_is_answered_400(port: int, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as asking:
        asking.sendall(line + b"\r\n\r\n")
        assert asking.recv(99).startswith(b"HTTP/1.1 400 ")


STRANGERS = ["evil.example", "evil.example:80", "169.254.169.254", "localhost.evil.example",
             "127.0.0.1.evil.example", "a@127.0.0.1", "", "[", "::1"]  # fmt: skip


@pytest.mark.parametrize("host", STRANGERS)
def test_a_page_whose_name_resolves_to_this_machine_is_not_answered(
    runway: RunwayControl, host: str
) -> None:
    for path in ("/sandbox/requests", "/sandbox/settings", "/v1/organization"):
        answer = httpx.get(f"{runway.url}{path}", headers={"host": host})
        assert answer.status_code in (400, 421), path
        assert runway.key not in answer.text


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "127.0.0.9:80", "[::1]"])
def test_requests_by_each_name_of_this_machine_are_answered(
    runway: RunwayControl, host: str
) -> None:
    answer = httpx.get(f"{runway.url}/sandbox/settings", headers={"host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    runway: RunwayControl, headers: dict[str, str]
) -> None:
    before = runway.settings()
    answer = httpx.patch(
        f"{runway.url}/sandbox/settings", headers=headers, json={"credit_balance": 1}
    )
    assert answer.status_code == 403
    assert "controlled by" in answer.text
    assert runway.settings() == before


def test_a_page_of_this_machine_may_change_it(runway: RunwayControl) -> None:
    headers = {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}
    answer = httpx.patch(
        f"{runway.url}/sandbox/settings", headers=headers, json={"credit_balance": 7}
    )
    assert answer.status_code == 200
    assert runway.settings()["credit_balance"] == 7


def test_a_strangers_websocket_is_not_opened() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI's
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await receive()
            await send({"type": "websocket.accept"})

    request = (
        "GET / HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with BackgroundServer(app, websockets=True) as server:
        for host, status in (("evil.example", b"403"), ("localhost", b"101")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as asking:
                asking.sendall(request.format(host).encode())
                assert asking.recv(99).split()[1] == status


# What a person sees.

HOSTILE = "gnp.\u202eevil\u2066\u2069\u200b\u200e\u061c\x9b31m\x1b[31m\u2028\u2029\U000e0041\x07"
SEEN = re.compile(r"[^ -~\n\u00a0-\u024f\u2010-\u2027\u2030-\u205e\u2190-\u28ff]")
TABLES = (
    "public.video_generation_tasks", "public.video_scenes", "public.video_scenarios",
    "public.video_generation_gates", "public.credit_entries", "vidgen.workers",
    "vidgen.submissions", "vidgen.checkpoints", "vidgen.gates", "vidgen.refusals", "vidgen.limits",
)  # fmt: skip


def made_hostile(database_url: str) -> set[str]:
    """Write it into every text column that takes it; return those columns."""
    taken = set()
    with psycopg.connect(database_url, autocommit=True) as connection:
        # As if an application without our triggers and checks had written it.
        connection.execute("set session_replication_role = replica")
        for table in TABLES:
            schema, name = table.split(".")
            columns = connection.execute(
                "select column_name from information_schema.columns where table_schema = %s"
                " and table_name = %s and data_type = 'text' and is_generated = 'NEVER'",
                [schema, name],
            ).fetchall()
            for (column,) in columns:
                statement = sql.SQL("update {} set {} = %s").format(
                    sql.Identifier(schema, name), sql.Identifier(column)
                )
                with contextlib.suppress(psycopg.Error):
                    if connection.execute(statement, [HOSTILE]).rowcount:
                        taken.add(f"{table}.{column}")
    return taken


def verbs(command: Any = None, path: tuple[str, ...] = ()) -> set[str]:  # noqa: ANN401 - click's
    """Return every verb that the parser knows."""
    command = command or typer.main.get_command(app)
    within = getattr(command, "commands", None)
    if within is None:
        return {" ".join(path)}
    return set().union(*(verbs(inner, (*path, name)) for name, inner in within.items()))


SERVES = {"run", "demo", "sandbox", "dashboard"}
"""They start processes and print what they made themselves; their logs are test_foreign_text's."""


def test_no_verb_prints_what_acts_on_a_terminal(
    complete: Cli, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    user = world.user()
    scene = world.scene(user)
    task, waiting = world.order(user, scene), world.order(user, world.scene(user))

    async def worked() -> None:
        async with world.worker():
            await world.until(task)
            await world.until(waiting)

    asyncio.run(worked())
    complete("gate", "close", "gen4_turbo", "--message", HOSTILE, "--yes")
    world.sql(
        "insert into vidgen.workers"
        " (id, host, pid, version, provider, key_fingerprint, account, scopes, concurrency, lease)"
        " values (gen_random_uuid(), 'h', 1, 'v', 'runway', 'k', 'default', '{*}', 1,"
        "         interval '1 h')"
    )
    (made,) = world.sql(
        "select public.create_video_webhook('https://example.com', array['video.*']) ->> 'id' as id"
    )
    webhook = made["id"]
    capsys.readouterr()
    taken = made_hostile(world.database.admin_url)
    assert {"public.video_generation_tasks.message", "vidgen.gates.message"} <= taken
    arguments: dict[str, list[list[object]]] = {
        "init": [["--file", HOSTILE]],
        "migrate": [[]],
        "check": [[]],
        "enqueue": [["--scene", scene, "--user", user], ["--scene", HOSTILE, "--user", user]],
        "stats": [[]],
        "workers": [[]],
        "reconcile": [[]],
        "prune": [["--older-than", "1d", "--yes"]],
        "tasks list": [[], ["--code", HOSTILE]],
        "tasks show": [[task], ["\u202e"], [f"--{HOSTILE}"]],
        "tasks watch": [[task], ["\u202e"]],
        "tasks cancel": [[task, "--yes"], ["--code", HOSTILE], ["--user", HOSTILE]],
        "tasks retry": [[task, "--yes"]],
        "credits grant": [[user, 1, "--reference", HOSTILE, "--yes"]],
        "credits show": [[user]],
        "credits audit": [[]],
        "limits list": [[]],
        "limits show": [[user], ["\u202e"]],
        "limits lift": [[user, "--yes"]],
        "webhooks list": [[]],
        "webhooks add": [[HOSTILE], ["https://example.com", "--event", HOSTILE]],
        "webhooks test": [[webhook], ["\u202e"]],
        "webhooks rotate": [[webhook, "--yes"]],
        "webhooks resend": [[webhook, "--yes"], [webhook, "--since", HOSTILE]],
        "webhooks deliveries": [[], ["--webhook", HOSTILE]],
        "webhooks remove": [[webhook, "--yes"]],
        "gate list": [[]],
        "gate close": [[HOSTILE, "--yes"]],
        "gate open": [["*", "--scope", HOSTILE, "--yes"], [HOSTILE, "--yes"]],
    }
    assert set(arguments) | SERVES == verbs(), "a verb is not tried, or gone"
    spelled_out = set()
    for verb, several in arguments.items():
        if verb not in ("gate close", "gate open"):
            several = [[*several[0], "--json"], *several]  # noqa: PLW2901 - the same, and more
        for given in several:
            result = complete(*verb.split(), *given)
            for said in (result.out, result.err):
                assert not SEEN.search(said), (verb, SEEN.findall(said))
                if "\\u202e" in said:
                    spelled_out.add(verb)
    assert {"tasks list", "tasks show", "stats", "gate list", "check"} <= spelled_out


def test_a_verb_waits_for_no_adapter() -> None:
    """They take more than half of a second, and --help needs none of them."""
    heavy = {"runwayml", "supabase", "prometheus_client", "httpx", "av", "storage3"}
    program = "import sys, vidgen_worker.cli; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert heavy & set(done.stdout.split()) == set()


def test_check_tells_of_the_walls(complete: Cli) -> None:
    found = findings(complete("check", "--json"))["Media"]
    assert found["state"] in ("ok", "note")
