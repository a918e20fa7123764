"""Findings, tables and figures of a search."""
