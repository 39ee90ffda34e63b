"""Request ids for calls that came without one."""

from __future__ import annotations

import itertools
import os


class RequestIds:
    """Ids that no other process makes: a random prefix, and a number."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Take a new prefix; two processes must not go on with the same one after a fork."""
        self._prefix = os.urandom(6).hex()
        self._next = itertools.count(1).__next__

    def __call__(self) -> str:
        return f"{self._prefix}-{self._next():x}"


new_request_id = RequestIds()
os.register_at_fork(after_in_child=new_request_id.renew)
