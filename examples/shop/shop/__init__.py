"""A shop made of nine services that talk to each other through polywire."""
