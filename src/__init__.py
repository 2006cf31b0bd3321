"""The model zoo. `python -m src.<command>` answers --help and typos before the command imports torch, which is slow."""

import sys

if sys.argv[0] == "-m":  # Python imports the package of the module that it is going to run
    from src.runtime.command import answer_early

    answer_early(sys.orig_argv)
