"""Validation: accuracy, agreement, latency, the table and the report."""
