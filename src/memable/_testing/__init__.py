"""
What ``memable.testing`` is made of.
"""
