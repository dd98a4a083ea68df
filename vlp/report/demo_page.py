"""The demo's page."""


def write_demo_page(root):
    """later"""
