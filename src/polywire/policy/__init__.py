"""Decisions about calls: whether, when, where to and how often. Nothing here opens or sends anything."""
