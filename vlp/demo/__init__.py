"""The demo: synthetic scenes and the whole CapFilt loop on them."""
