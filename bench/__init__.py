"""The benchmark: Longshore beside its peers and beside the machine's limit.

`README.md` here explains the method.  Nothing in `src` knows of this package, and it is not installed.
"""
