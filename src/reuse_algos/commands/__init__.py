"""The commands of ``reuse-algos``, one module each.

A module has ``add_parser(subparsers)``, which only describes arguments, and ``run(args) -> int``, which does the work
and returns the exit code. What is slow to import (torch, Composer, matplotlib) is imported inside ``run``.
"""
