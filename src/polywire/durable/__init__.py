"""What survives: transactions of a service's own database, and the inbox that makes effects happen once."""
