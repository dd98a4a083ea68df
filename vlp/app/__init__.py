"""The page in the browser: `vlp app`."""
