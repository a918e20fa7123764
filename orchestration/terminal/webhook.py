"""Messages to a webhook when a trial is the best so far, when one fails and when the sweep ends.

The address comes from the environment, because it often contains a secret that no file, tag or log should have.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import urllib.request
from typing import Any

from orchestration.terminal.format import format_number
from orchestration.terminal.progress import Row
from orchestration.terminal.views import finite

ADDRESS = "SOFLOW_WEBHOOK"
"""Environment variable with the URL: of Slack or Mattermost, or of your own server."""
ANSWERS_WITHIN_S, LAST_MESSAGES_S = 10, 15


class Webhook:
    """Sends JSON objects with `text`, `event`, `sweep` and details in POST requests, in the background.

    A message that fails is given up, and the first failure is printed: no message delays or ends the sweep. Without the
    environment variable nothing is sent.
    """

    def __init__(self, sweep: str):
        self.sweep, self._best, self._warned = sweep, math.inf, False
        self._url = os.environ.get(ADDRESS, "")
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        if self._url:
            threading.Thread(target=self._send_all, name="webhook", daemon=True).start()

    def count_finished(self, fid: float) -> None:
        """Count a trial that finished before this process started."""
        self._best = min(self._best, fid)

    def trial_ended(self, row: Row) -> None:
        """Report a failed trial, and a finished one that is the best so far."""
        if row.state == "failed":
            self._put("trial failed", f"trial {row.number} failed: {row.reason}", trial=row.number, reason=row.reason)
        elif row.state == "finished" and row.fid < self._best:
            self._best = row.fid
            fid = format_number(row.fid, ".4g")
            self._put(
                "better trial", f"trial {row.number} is the best so far: FID {fid}", trial=row.number, fid=row.fid
            )

    def sweep_ended(self, status: str, metrics: dict[str, float]) -> None:
        """Report the end of the sweep, and wait until all messages are sent, at most 15 s."""
        best = metrics.get("best/fid")
        result = f", best FID {format_number(best, '.4g')}" if best is not None else ""
        self._put("sweep ended", f"{status.lower()}{result}", status=status, best_fid=best)
        waiting = threading.Thread(target=self._messages.join, daemon=True)
        waiting.start()
        waiting.join(LAST_MESSAGES_S)

    def _put(self, event: str, text: str, **details: Any) -> None:
        if self._url:
            self._messages.put({"text": f"{self.sweep}: {text}", "event": event, "sweep": self.sweep, **details})

    def _send_all(self) -> None:
        while True:
            message = self._messages.get()
            try:
                body = json.dumps(finite(message)).encode()
                request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=ANSWERS_WITHIN_S).close()
            except Exception as error:  # of the URL, the network or the server
                if not self._warned:
                    print(f"{ADDRESS}: messages cannot be sent ({type(error).__name__})", flush=True)
                self._warned = True
            finally:
                self._messages.task_done()
