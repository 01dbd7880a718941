"""
Where records are kept: the narrow protocol between engine and store, and its implementations.
"""
