"""
A user's value to its stored form and back, by its annotated type.

``_codec`` is the way in. A type's annotation is read into a tree (``_type_reader``), the tree becomes a shape
(``_shapes``), and the shape encodes and decodes.
"""
