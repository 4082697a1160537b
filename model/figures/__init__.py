"""What is quoted of scores: figures with intervals, tables, plots."""
