"""Limits of a process that reads a foreign file, even if the file takes it over.

It keeps its memory and the one folder of its file. The kernel refuses it sockets, programs, other
processes and files elsewhere (a seccomp filter and Landlock, by their system calls: a library for
them would need one in C, which small containers lack). Where the kernel or the machine has no such
wall, the others hold, and `raise_walls` says which is missing. Nothing here reads a file.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CAPABILITY_VERSION_3 = 0x20080522
OPEN_FILES = 64
"""File descriptors of a process that reads one file and writes one."""

# Landlock: <linux/landlock.h>. Its calls have the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Rights that a version knows; one in between knows those of the version before."""
_TCP_RIGHTS, _TCP_SINCE = 0b11, 4
_SCOPES, _SCOPES_SINCE = 0b11, 6
_OF_LIBRARIES = _READ_FILE | _READ_DIR | _EXECUTE
_OF_THE_FOLDER = _READ_FILE | _READ_DIR | _WRITE_FILE | _MAKE_REG | _REMOVE_FILE | _TRUNCATE

# Seccomp: <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h>.
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _IS, _IS_ABOVE, _HAS_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_MODE_FILTER = 2
_CLONE_THREAD = 0x10000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Audit number, and the column of the table below."""
_NO_PROCESS = 0x7FFFFFFD
_OWN = struct.pack("=I", _NO_PROCESS)
_NEWEST = 451
"""Later calls (cachestat, Linux 6.5 and newer) are answered as by an older kernel."""
# Name, number on x86_64, number on aarch64; "-" where there is none.
_REFUSED = """
socket 41 198, socketpair 53 199, connect 42 203, bind 49 200, listen 50 201, accept 43 202,
accept4 288 242, sendto 44 206, sendmsg 46 211, sendmmsg 307 269, recvmsg 47 212,

execve 59 221, execveat 322 281, fork 57 -, vfork 58 -, memfd_create 319 279,

ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440,
kcmp 312 272, kill 62 129, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424, process_mrelease 448 448,
sched_setscheduler 144 119, sched_setattr 314 274, setpriority 141 140, ioprio_set 251 30,
shmget 29 194, shmat 30 196, shmctl 31 195, semget 64 190, semop 65 193, semctl 66 191,
semtimedop 220 192, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180,

chmod 90 -, fchmod 91 52, fchmodat 268 53, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54,
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15,
fremovexattr 199 16, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, mknod 133 -,
mknodat 259 33, utime 132 -, utimes 235 -, utimensat 280 88, futimesat 261 -,
name_to_handle_at 303 264, open_by_handle_at 304 265, inotify_init 253 -, inotify_init1 294 26,
fanotify_init 300 262,

prctl 157 167, seccomp 317 277, setns 308 268, unshare 272 97, chroot 161 51, mount 165 40,
umount2 166 39, pivot_root 155 41, move_mount 429 429, open_tree 428 428, fsopen 430 430,
fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442, personality 135 92,
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_setup 206 0, io_submit 209 2,
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, add_key 248 217,
request_key 249 218, keyctl 250 219, syslog 103 116, modify_ldt 154 -, iopl 172 -, ioperm 173 -,
acct 163 89, quotactl 179 60, quotactl_fd 443 443, swapon 167 224, swapoff 168 225, reboot 169 142,
sethostname 170 161, setdomainname 171 162, settimeofday 164 170, clock_settime 227 112,
adjtimex 159 171, clock_adjtime 305 266, init_module 175 105, finit_module 313 273,
delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294
"""
_CLONE, _TGKILL, _PRLIMIT, _IOCTL, _CLONE3 = (56, 220), (234, 131), (302, 261), (16, 29), 435


def give_up_rights() -> None:
    """Give up what a hijacked process could use: other users' rights, this process's memory.

    Without capabilities, not even root can read the environment of a process that is not dumpable,
    and the worker is not dumpable. Where the kernel refuses one of these, the others hold.
    """
    if sys.platform != "linux":
        return
    libc = _libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc.capset(header, nothing)
    if os.uname().machine in _ARCHITECTURES:
        _filter(os.uname().machine)  # kept for all processes that are forked


def raise_walls(folder: Path | None, parent: int) -> list[str]:
    """Keep this process to `folder`, where it may read and write, for good; None: to no folder.

    It ends with `parent`, its own one. Returns a phrase for each wall that does not hold here. Only
    for a process with a single thread: the walls are of threads, and of those they start.
    """
    if sys.platform != "linux":
        return [f"{sys.platform} has neither Landlock nor seccomp"]
    libc = _libc()
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)
    _lower_limits()
    lacking = [_landlock(libc, folder), _seccomp(libc)]
    return [said for said in lacking if said]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _lower_limits() -> None:
    """Make the limits that hold now final, and take all but a few open files.

    There is none for processes: the system counts all of a user's, the worker's threads too.
    """
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        soft, _ = resource.getrlimit(kind)
        resource.setrlimit(kind, (soft, soft))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _landlock(libc: ctypes.CDLL, folder: Path | None) -> str | None:
    """Forbid all files but those of `folder` and, for reading, Python's and the system's own."""
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return f"Landlock: {_reason()} (files elsewhere can be opened)"
    rights = _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= version)]
    handled = struct.pack(
        "=QQQ", rights,
        _TCP_RIGHTS if version >= _TCP_SINCE else 0,
        _SCOPES if version >= _SCOPES_SINCE else 0,
    )  # fmt: skip
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= _TCP_SINCE else 8
    ruleset = libc.syscall(_CREATE_RULESET, handled, size, 0)
    if ruleset < 0:
        return f"Landlock: {_reason()} (files elsewhere can be opened)"
    try:
        for path in _LIBRARIES:
            _allow(libc, ruleset, path, _OF_LIBRARIES & rights)
        if folder is not None:
            _allow(libc, ruleset, str(folder), _OF_THE_FOLDER & rights)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return f"Landlock: {_reason()} (files elsewhere can be opened)"
    finally:
        os.close(ruleset)
    return None


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Add a folder to the rules; a folder that does not exist needs no rule."""
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError:
        return
    try:
        libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, beneath), 0)
    finally:
        os.close(beneath)


def _libraries() -> tuple[str, ...]:
    """Return the folders that code is loaded from, without those inside another one."""
    ours = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    system = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/sys/devices/system/cpu"}
    found = {os.path.realpath(path) for path in {*ours, *system, str(Path(__file__).parents[1])}}
    return tuple(
        sorted(path for path in found if not any(path.startswith(f"{other}/") for other in found))
    )


_LIBRARIES = _libraries()


def _seccomp(libc: ctypes.CDLL) -> str | None:
    """Let the kernel refuse the system calls that decoding does not need."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return f"seccomp: there is no list of system calls for {machine}"
    code = _filter(machine).replace(_OWN, struct.pack("=I", os.getpid()))
    program = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, and where they are.
    filters = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, filters, 0, 0) != 0:
        return f"seccomp: {_reason()} (sockets and programs can be opened)"
    return None


@cache
def _filter(machine: str) -> bytes:
    """Return the filter, made once before all forks, with `_OWN` in place of the process's id."""
    return b"".join(_program(*_ARCHITECTURES[machine]))


def _program(architecture: int, column: int) -> Iterator[bytes]:
    """Yield the instructions of the filter: the answers stand behind what leads to them."""
    refused, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    yield _step(_LOAD, _ARCHITECTURE)
    yield _step(_IS, architecture, 1, 0)
    yield _step(_RETURN, _KILL)  # 32-bit calls have other numbers
    yield _step(_LOAD, _NUMBER)
    yield _step(_IS_ABOVE, _NEWEST, 0, 1)
    yield _step(_RETURN, unknown)
    yield _step(_IS, _CLONE3, 0, 1)  # its flags are in memory; the C library then takes clone
    yield _step(_RETURN, unknown)
    for entry in _REFUSED.replace("\n", " ").split(","):
        number = entry.split()[1 + column]
        if number != "-":
            yield _step(_IS, int(number), 0, 1)
            yield _step(_RETURN, refused)
    yield from _only_if(_CLONE[column], _FIRST_ARGUMENT, _HAS_BIT, _CLONE_THREAD)
    # abort() sends a signal to its own process.
    yield from _only_if(_TGKILL[column], _FIRST_ARGUMENT, _IS, _NO_PROCESS)
    yield from _only_if(_PRLIMIT[column], _FIRST_ARGUMENT, _IS, 0)
    yield _step(_IS, _IOCTL[column], 0, 4)
    yield _step(_LOAD, _SECOND_ARGUMENT)
    yield _step(_IS, _TIOCSTI, 1, 0)  # types into the terminal of whoever started the worker
    yield _step(_IS, _TIOCLINUX, 0, 1)
    yield _step(_RETURN, refused)
    yield _step(_RETURN, _ALLOW)


def _only_if(number: int, argument: int, test: int, value: int) -> Iterator[bytes]:
    """Yield steps that allow a call if the low half of an argument passes the test, else refuse."""
    yield _step(_IS, number, 0, 4)
    yield _step(_LOAD, argument)
    yield _step(test, value, 0, 1)
    yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _ERRNO | errno.EPERM)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    """Return one instruction: `if_so` and `if_not` are how many of the next ones are skipped."""
    return struct.pack("=HBBI", code, if_so, if_not, value)


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
