"""Other people's environments as ours: by a pipe to a process of their own, by a socket, or by shape.

Nothing of theirs is imported here. `host.py` and `shapes.py` run in their interpreter, on the standard library alone.
"""
