"""Units and their formatting. Values in code are SI base units: bytes, seconds, FLOP/s, bytes/s."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30
GB = 10**9
TERA = 10**12

DTYPE_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


def gbps_to_bytes_per_s(gbps: float) -> float:
    """Convert a line rate in Gb/s (the unit of NICs) to bytes/s."""
    return gbps * 1e9 / 8


def format_bytes(num_bytes: float) -> str:
    """1536 → '1.5 KiB'; GiB is the largest unit, since GPU memory is given in it."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """0.0123 → '12.3 ms'; 93 → '93.0 s'; 0 → '0 s'."""
    if not seconds:
        return "0 s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{seconds * 1e6:.1f} µs"


def format_count(count: float) -> str:
    """175e9 → '175.0B'."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"
