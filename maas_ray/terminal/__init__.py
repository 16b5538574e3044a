"""Terminal output: lines, tables, progress, curves, plots."""
