"""When tasks run by themselves: the moments of a schedule, which of them are due, and one firing for each."""
