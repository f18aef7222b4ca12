"""Habit: files at module level that nobody closes, at a normal end, at sys.exit and at an exception."""

import atexit
import csv
import lzma
import os
import sys

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


def main() -> None:
    in_a_frame = open(f"frame-{rank}.txt", "w")
    in_a_frame.write("of a function\n")
    if sys.argv[1] == "exception":
        raise ValueError("on purpose")
    if rank == "1":
        sys.exit()


Log(f"log-{rank}.txt")
kept = Log(f"kept-{rank}.txt")
for i in range(50):
    rows.writerow([i, i * i])
packed.write("x" * 1000)
print(f"no newline from {rank}", end="", file=open(f"print-{rank}.txt", "w"))
main()
