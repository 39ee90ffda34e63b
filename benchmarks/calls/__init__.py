"""Client and server both in Python: polywire beside the stacks that teams use today."""
