"""What the documentation site shows of the catalogue, generated from the registry.

equation (docstring's formulas to MathML), dataflow (a traced block to SVG), facts (costs, speed,
verification, citation), pictures (attention on a photograph or a series) -> page, gallery, tables.
"""
