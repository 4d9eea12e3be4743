"""A command on disks that know no locks: ``python -m tests.lockless module ...``; the kernel refuses ``flock``."""

import ctypes
import errno
import platform
import runpy
import struct
import sys

FLOCK = {"x86_64": 73, "aarch64": 32}  # numbers of the system call
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def refuse_locks() -> None:
    """From here on, and in all processes that are started: ENOLCK, as of an NFS without a lock daemon."""
    program = [
        (LOAD, 0, 0, 0),
        (JUMP_IF_EQUAL, 0, 1, FLOCK[platform.machine()]),
        (RETURN, 0, 0, REFUSE | errno.ENOLCK),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = ctypes.create_string_buffer(struct.pack("HL", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, FILTER, head):
        raise OSError(ctypes.get_errno(), "this kernel filters no system calls")


if __name__ == "__main__":
    refuse_locks()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
