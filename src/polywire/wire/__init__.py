"""How an rpc travels: the seam, and one package or file per wire (local, grpc, http)."""
