"""kdpipe: distil medical segmentation networks, and settle which method is worth it."""

__version__ = "0.1.0"
