"""What attacks are made of: the limits they meet, and the words in which they say that they came through."""

from baleen.agent.sandbox import Limits

MIB = 1 << 20
LIMITS = Limits(memory_bytes=256 * MIB, processes=16, disk_bytes=8 * MIB, output_bytes=20_000)

PRELUDE = """
import ctypes, errno, os, signal, socket, stat, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def breach(*what): print("BREACH", *what, flush=True)
def must_fail(what, call, *arguments):
    try:
        result = call(*arguments)
    except (OSError, ValueError):
        return
    breach(what, result)
def must_return_error(what, call, *arguments):
    result = call(*arguments)
    if result != -1: breach(what, result)
def must_not_open(*paths):
    for path in paths:
        for mode in ("rb", "r+b"):
            try:
                with open(path, mode) as file: breach("opened", path, mode, file.read(1))
            except OSError:
                pass
"""
