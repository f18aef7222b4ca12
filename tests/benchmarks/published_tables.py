"""Compare estimates with two published tables, as Markdown: python tests/benchmarks/published_tables.py"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cost"))

from published import table

TABLES = (
    ("Narayanan et al. 2021, table 1", "narayanan2021_table1", 2021),
    ("Korthikanti et al. 2022, table 5", "korthikanti2022_table5", 2022),
)


def main() -> None:
    for title, source, year in TABLES:
        both = list(zip(table(source), table(source, stated=False), strict=True))
        print(f"**{title}**\n\n| run | GPUs | layout | measured s | stack.year={year} | default |")
        print("|---|--:|---|--:|--:|--:|")
        for stated, plain in both:
            times = [f"{run.estimate().step_time_s:.2f} ({100 * run.error():+.1f} %)" for run in (stated, plain)]
            layout = stated.layout
            row = (stated.name, layout.world_size, layout.brief(), f"{stated.step_s:.2f}", *times)
            print(f"| {' | '.join(map(str, row))} |")
        means = [100 * statistics.mean(abs(run.error()) for run in runs) for runs in zip(*both, strict=True)]
        print(f"| mean of absolute errors | | | | {means[0]:.1f} % | {means[1]:.1f} % |\n")


if __name__ == "__main__":
    main()
