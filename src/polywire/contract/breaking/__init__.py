"""Contracts that last: names every change between two versions that would break who still speaks the old one."""

from polywire.contract.breaking.check import RULES, breaking_changes
from polywire.contract.breaking.contracts import Contracts, contracts_of_files, contracts_of_services
from polywire.contract.breaking.findings import CATEGORIES, SIDES, Category, Finding, Rule, Side

__all__ = [
    "CATEGORIES",
    "RULES",
    "SIDES",
    "Category",
    "Contracts",
    "Finding",
    "Rule",
    "Side",
    "breaking_changes",
    "contracts_of_files",
    "contracts_of_services",
]
