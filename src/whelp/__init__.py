"""whelp: the whole of RLHF in one install."""

import os

__version__ = "0.1.0"

# oneDNN, and torch's layer above it, keep a compiled kernel with its buffers for every shape they have met, 1,024 of them;
# text has a new shape in every batch, and a run grew by gigabytes. They read the variables when torch is loaded, so they must
# be set before.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

# The hub's libraries tell the hub who reads what unless they are asked not to, also when they are loaded.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
