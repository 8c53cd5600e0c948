"""What several tests of federations share: an ASGI program over TLS in this process."""

import threading
import time

import uvicorn

from ticketlab.federate.processes import free_port


class Served:
    """An ASGI program in a thread, over TLS."""

    def __init__(self, app, files):
        self.port = free_port()
        config = uvicorn.Config(
            app, host="127.0.0.1", port=self.port, ssl_certfile=files / "server.crt", ssl_keyfile=files / "server.key",
            lifespan="off", ws="none", loop="asyncio", log_level="critical",
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        end = time.monotonic() + 10
        while not self.server.started and time.monotonic() < end:
            time.sleep(0.02)
        return f"https://127.0.0.1:{self.port}"

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)
