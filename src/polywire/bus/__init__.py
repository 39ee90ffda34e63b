"""Work done later and facts that travel: tasks, events, and the backends that carry them."""
