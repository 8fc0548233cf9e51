"""Fit one generalist on the shards, judge it, report."""
