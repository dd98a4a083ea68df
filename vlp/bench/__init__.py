"""`vlp bench`: how fast each part of vlp is on this machine, optionally compared with a peer."""
