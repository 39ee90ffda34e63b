"""Decisions about calls: deadlines, retries, balance. Nothing here opens, sends or waits."""
