"""The plan as a page that a person understands.

`facts` is what is told, in words and numbers; `markdown` and `terminal` only lay it out, so both say the same.
"""
