"""From Parquet to numbers: trials, variants, statistics, contrasts. No torch, no Ray."""
