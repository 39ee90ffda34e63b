"""`python -m polywire.cli`, for where the installed script is not on the path."""

from polywire.cli import main

main()
