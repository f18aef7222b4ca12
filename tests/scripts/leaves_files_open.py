"""Habit: files at module level that nobody closes, at a normal end, at sys.exit and at an exception."""

import atexit
import csv
import fcntl
import lzma
import os
import sys
import time

rank = os.environ["RANK"]
rows = csv.writer(open(f"rows-{rank}.csv", "w", newline=""))
packed = lzma.open(f"packed-{rank}.xz", "wt")
kept_by_a_hook = open(f"hook-{rank}.txt", "w")
atexit.register(kept_by_a_hook.write, "the hook's line\n")


class Log:
    """Has a file of its own."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "w")
        self.me = self  # only the garbage collector frees it

    def __del__(self) -> None:
        self.file.write("finalized\n")


def hold_until_this_process_is_gone() -> None:
    fcntl.flock(os.open("lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
    open("held", "w").close()


def wait_for_the_other() -> None:
    """A rank that is still running when another fails is ended before it writes what it has open."""
    while not os.path.exists("held"):
        time.sleep(0.1)
    fcntl.flock(os.open("lock", os.O_RDWR), fcntl.LOCK_EX)


def main() -> None:
    in_a_frame = open(f"frame-{rank}.txt", "w")
    in_a_frame.write("of a function\n")
    if rank == "1":
        sys.exit()
    if sys.argv[1] == "exception":
        wait_for_the_other()
        raise ValueError("on purpose")


Log(f"log-{rank}.txt")
kept = Log(f"kept-{rank}.txt")
for i in range(50):
    rows.writerow([i, i * i])
packed.write("x" * 1000)
if rank == "1":
    hold_until_this_process_is_gone()
print(f"no newline from {rank}", end="", file=open(f"print-{rank}.txt", "w"))
main()
