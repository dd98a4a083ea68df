"""Pictures and pages from files on disk."""
