"""Serves the page: on this machine only unless told, with passwords elsewhere, and without any other address."""

import os
import signal
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from vlp.app.inputs import AppInputs
from vlp.errors import UserError, WorkError

LOCAL = ("127.0.0.1", "localhost", "::1")
LARGEST_UPLOAD = "20mb"
MOST_WAITING = 200  # events in the queue; more are refused
AT_ONCE = 8  # events


def serve(inputs: AppInputs, host: str = "127.0.0.1", port: int = 7860, auth: list[str] | None = None) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        port: 0 chooses a free one.
        auth: who may enter, each as USER:PASSWORD; empty: everyone on this machine.

    Raises:
        UserError: the host is another than this machine and there are no passwords, an entry of `auth` has another
            form, or there is nothing to show.
        WorkError: the port is in use.
    """
    users = [_user(one) for one in auth or []]
    if host not in LOCAL and not users:
        raise UserError(f"On {host} everyone in the network could use the page; add --auth USER:PASSWORD.")
    with TemporaryDirectory(prefix="vlp-app-") as uploads:
        _keep_to_itself(Path(uploads))
        from vlp.app.page import open_page, script, style

        with open_page(inputs) as page:
            import gradio as gr

            page.queue(max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
            try:
                _, address, _ = page.launch(
                    server_name=host,
                    server_port=port or _free_port(host),
                    auth=users or None,
                    share=False,
                    prevent_thread_lock=True,
                    quiet=True,
                    inbrowser=False,
                    _frontend=False,  # no check that the page answers in 3 s: a busy machine may take longer
                    max_file_size=LARGEST_UPLOAD,
                    footer_links=[],
                    run_history=False,
                    ssr_mode=False,
                    enable_monitoring=False,
                    mcp_server=False,
                    pwa=False,
                    allowed_paths=[],
                    theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate").set(
                        button_primary_background_fill="*primary_700",
                        button_primary_background_fill_hover="*primary_800",
                    ),
                    css=style(),
                    head=script(),
                )
            except OSError as error:
                raise WorkError(
                    f"The page cannot be served on {host}:{port}: {error}; choose another --port."
                ) from None
            print(f"The page is on {address} (Ctrl-C ends it)", flush=True)
            _wait()
            page.close(verbose=False)


def _keep_to_itself(uploads: Path) -> None:
    """Settings that gradio reads from the environment: no telemetry, no proxy, and a folder of its own for uploads."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    for name in ("no_proxy", "NO_PROXY"):  # gradio asks the page itself whether it has started
        os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), *LOCAL]))
    for name in ("GRADIO_SHARE", "GRADIO_ALLOWED_PATHS", "GRADIO_MCP_SERVER"):
        os.environ.pop(name, None)


def _user(given: str) -> tuple[str, str]:
    name, _, password = given.partition(":")
    if not name or not password:
        raise UserError("--auth takes USER:PASSWORD, both not empty.")
    return name, password


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _wait() -> None:
    """Wait for SIGINT or SIGTERM, then restore their handlers."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {one: signal.signal(one, end) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended.wait()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
