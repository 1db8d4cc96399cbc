"""The gradient path: flat buckets, the drivers of compressors, when to send."""
