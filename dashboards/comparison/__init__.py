"""Comparison of cases over seeds: tests, tables, figures and claims."""
