"""A shop made of five services that talk to each other through polywire."""
