"""whelp: the whole of RLHF in one install."""

import os

__version__ = "0.1.0"

# oneDNN keeps a compiled kernel with its buffers for every shape it has met, 1,024 of them; text has a new shape in every
# batch, and a run grew by gigabytes. It reads the variable when torch is loaded, so it must be set before.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
