"""Compare estimates with the measurements of tests/data, as Markdown: python tests/benchmarks/published_tables.py"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cost"))

from published import table

TABLES = (
    ("Narayanan et al. 2021, table 1", "narayanan2021_table1.csv", 2021),
    ("Korthikanti et al. 2022, table 5", "korthikanti2022_table5.csv", 2022),
)


def main() -> None:
    for title, file, year in TABLES:
        rows = table(file)
        print(f"**{title}**\n\n| model | GPUs | layout | measured s | stack.year={year} | default |")
        print("|---|--:|---|--:|--:|--:|")
        for row in rows:
            both = [f"{row.estimate(year=y).step_time_s:.2f} ({100 * row.error(year=y):+.1f} %)" for y in (year, None)]
            print(f"| {row.name} | {row.num_gpus} | {row.layout.brief()} | {row.seconds:.2f} | {both[0]} | {both[1]} |")
        means = [100 * statistics.mean(abs(row.error(year=y)) for row in rows) for y in (year, None)]
        print(f"| mean of absolute errors | | | | {means[0]:.1f} % | {means[1]:.1f} % |\n")


if __name__ == "__main__":
    main()
