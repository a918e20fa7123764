"""Comparison of cases over seeds: tests, tables and figures."""
