"""
What ``memable ls``, ``show`` and ``history`` do: they read a store beside whoever has it open, and change nothing.

Whatever was stored is data here: it is never imported, interpreted as markup, or sent to a terminal as it is. Only the
modules that draw tables need rich; lines of JSON can be had without it.
"""
