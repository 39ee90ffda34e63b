"""Kills workers and servers of the bus under load and checks that nothing was lost: `python -m tests.torture`."""
