"""`vlp bench`: how fast each part is, beside its peers, measured in one process and in turns."""
