"""Offline, parallel: filter by return, tokenize, shard."""
