"""Contracts that last: names every change between two versions that would break who still speaks the old one."""
