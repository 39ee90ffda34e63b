"""`.proto` files of others, read into Python modules."""

from polywire.contract.protofile.module import python_module

__all__ = ["python_module"]
