"""A wall clock that jumps: a shim around the C library's clock, steered through a shared file.

It holds for everything in a process, NumPy's, Rust's and Dask's code too; monotonic clocks go on as they are.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static int64_t offset(void) {
    static volatile int64_t *shared;
    if (!shared) {
        int fd = open(getenv("TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
        shared = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    }
    return *shared;
}
int clock_gettime(clockid_t id, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, out);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) out->tv_sec += offset();
    return status;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""
HOUR, YEAR = 3600, 365 * 24 * 3600
JUMPS = (0, 2 * HOUR, -2 * HOUR, 26 * HOUR, -YEAR, YEAR, 9 * YEAR, -15 * YEAR)


@dataclass
class Clock:
    """The offset of the clock, and the environment of the processes that have it."""

    file: Path
    env: dict[str, str]

    def set(self, seconds: int) -> None:
        """Jump to so many seconds from the true time."""
        with self.file.open("r+b") as file:
            file.write(struct.pack("<q", seconds))

    @contextmanager
    def jumping(self, seconds: float = 0.01) -> Iterator[list[int]]:
        """Jump back and forth all the time; the jumps so far."""
        dice, done, made = random.Random(0), threading.Event(), []

        def jump() -> None:
            while not done.wait(seconds):
                made.append(dice.choice(JUMPS))
                self.set(made[-1])

        thread = threading.Thread(target=jump)
        thread.start()
        try:
            yield made
        finally:
            done.set()
            thread.join()
            self.set(0)


def jumpy_clock(folder: Path) -> Clock:
    """Compile the shim."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a clock that jumps takes a C compiler")
    (folder / "clock.c").write_text(SOURCE)
    shim, file = folder / "clock.so", folder / "offset"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(folder / "clock.c"), "-ldl"]
    subprocess.run(command, check=True)
    file.write_bytes(struct.pack("<q", 0))
    return Clock(file, {"LD_PRELOAD": str(shim), "TEST_CLOCK": str(file)})
