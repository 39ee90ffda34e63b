"""The gRPC wire: server, client, health and reflection, understood by every other implementation of gRPC."""
