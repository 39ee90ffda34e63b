"""Where the endpoints of a target are: fixed addresses, or what DNS says."""

from polywire.discovery.resolvers import DnsResolver, Resolver, StaticResolver

__all__ = ["DnsResolver", "Resolver", "StaticResolver"]
