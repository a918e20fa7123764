"""Server of the live view: Streamlit's, which answers only requests that name this machine as their host.

A web page elsewhere could otherwise point its own name at this machine (DNS rebinding) and read the records.
"""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from streamlit.starlette import App

HOSTS = ["localhost", "127.0.0.1"]

app = App(Path(__file__).with_name("app.py"), middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)])
