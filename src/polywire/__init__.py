"""polywire: one typed contract for the calls between services, over any wire."""
