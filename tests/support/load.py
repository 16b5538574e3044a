"""Load on an endpoint while it changes."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Load:
    """Two clients that ask one endpoint without pause while the block runs."""

    url: str
    body: dict[str, Any]
    failed: list[str] = field(default_factory=list)
    answered: int = 0

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as http:
            while not self._stop.is_set():
                try:
                    response = http.post(self.url, json=self.body)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                else:
                    self.answered += response.status_code == 200
                    if response.status_code != 200:
                        self.failed.append(f"{response.status_code} {response.text[:200]}")
                time.sleep(0.02)

    def goes_on(self, seconds: float = 60) -> None:
        """Return when requests are answered again."""
        before, deadline = self.answered, time.monotonic() + seconds
        while self.answered < before + 5:
            assert time.monotonic() < deadline, self.failed[-3:]
            time.sleep(0.05)
