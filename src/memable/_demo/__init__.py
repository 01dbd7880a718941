"""
What ``memable demo`` runs: a pipeline over Python's standard library, in a process that is killed again and again.

Read ``_pipeline`` first: it is what a user of memable writes. The other modules kill it, count and check.
"""
