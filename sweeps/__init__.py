"""Many runs: studies, plan, Ray Tune and Optuna, Parquet tables, statistics, report."""
