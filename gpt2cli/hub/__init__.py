"""Models on disk, without torch."""
