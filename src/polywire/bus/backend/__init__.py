"""One file per backend. A new one implements `TaskQueue`, `EventLog` or `Fanout` of `polywire.bus.core` and passes its
suite in `polywire.testing`; `polywire.bus.backend.opening` finds it by the scheme of its URL."""
