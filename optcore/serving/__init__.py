"""Results in the engines that serve them, each in a process of its own: `python -m optcore.serving ENGINE ...`.

The child imports numpy, its engine and hardly anything of ours beyond this room, so that its peak memory is the
engine's, and so that it can say that there was too little.
"""
