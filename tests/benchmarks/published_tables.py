"""Compare estimates with two published tables, as Markdown: python tests/benchmarks/published_tables.py"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cost"))

from judging import PAPERS, paper_table


def main() -> None:
    for paper in PAPERS:
        print("\n".join(paper_table(*paper)) + "\n")


if __name__ == "__main__":
    main()
