"""Does the order of methods carry over from one leaderboard to another?

Spearman's rank correlation of delta-m and of mean ranks over the methods that both have.
Usage: python benchmarks/order.py A.csv B.csv, made by `mtbench leaderboard RUNS --format csv`
"""

import sys

import pandas as pd
from scipy.stats import spearmanr

first, second = (pd.read_csv(path, index_col="method") for path in sys.argv[1:3])
shared = first.index.intersection(second.index)
for column in ("delta_m", "mean_rank"):
    found = spearmanr(first.loc[shared, column], second.loc[shared, column])
    print(f"{column}: {found.statistic:.2f} (p = {found.pvalue:.2f}), {len(shared)} methods")
