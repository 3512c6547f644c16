"""whelp: the whole of RLHF in one install."""

__version__ = "0.1.0"
