"""Between a group's owner, who posts requests, and its workers, who all take each request in turn.

Workers get lost and groups restart, so a message counts only if it comes from the group's present generation and is
about the present request, and an error counts only once it is known not to be the echo of a lost peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

POLL_S = 10.0
"""How long a question to the mailbox waits for an answer before it is asked again."""
AGREE_S = 10.0
"""How long a worker that failed waits for the others to fail alike; a lost peer is noticed well within that."""
RESTARTS = 3
"""How many times the workers may be lost on one request, unless its owner says otherwise."""
OUT_OF_MEMORY = "its node ran out of memory"
"""In the reason of a loss that would only repeat itself: the owner is told at once, to ask for less."""


@dataclass(frozen=True)
class Outcome:
    """What came of a request: an answer, or the reasons why the workers were lost on it time and again."""

    answer: Any = None
    losses: tuple[str, ...] = ()


class Mailbox:
    """One request at a time, served by the newest generation of a group's workers. All methods are coroutines."""

    def __init__(self, restarts: int = RESTARTS):
        self._restarts = restarts
        self._changed = asyncio.Condition()
        self._generation, self._workers, self._closed = 0, 0, False
        self._number, self._request = 0, None
        self._outcome: Outcome | None = None
        self._failures: dict[int, tuple[str, Any]] = {}
        """By rank: what the present generation's failed workers said of the present request."""
        self._agreed = (0, 0)
        """Generation and request of the last failure that all workers met alike."""
        self._losses: list[str] = []
        self._doubted = False

    async def post(self, request: Any) -> int:
        """The owner's next request; its number."""
        async with self._changed:
            self._number, self._request, self._outcome = self._number + 1, request, None
            self._failures, self._losses, self._doubted = {}, [], False
            self._changed.notify_all()
            return self._number

    async def read(self, number: int) -> Outcome | None:
        """What came of a request, None if nothing did for a while."""
        await self._wait(lambda: self._number == number and self._outcome is not None)
        return self._outcome if self._number == number else None

    async def begin(self, workers: int) -> int:
        """A group of so many workers has started; its generation. Older ones are heard no more."""
        async with self._changed:
            self._generation, self._workers, self._failures = self._generation + 1, workers, {}
            self._changed.notify_all()
            return self._generation

    async def take(self, generation: int, after: int) -> tuple[int, Any] | None:
        """The first unanswered request newer than number `after`; None if there was none for a while, -1 to leave."""

        def leave() -> bool:
            return self._closed or generation != self._generation

        if not await self._wait(lambda: leave() or (self._number > after and self._outcome is None)):
            return None
        return (-1, None) if leave() else (self._number, self._request)

    async def answer(self, generation: int, number: int, answer: Any) -> None:
        async with self._changed:
            if self._open(generation, number):
                self._settle(Outcome(answer))

    async def fail(self, generation: int, number: int, rank: int, error: str, answer: Any) -> bool:
        """A worker could not serve a request, for which `answer` would be the answer.

        Returns:
            Whether the group can live on: all its workers failed alike, so that none is left waiting for another.
        """
        this = (generation, number)
        async with self._changed:
            if not self._open(generation, number):
                return self._agreed == this
            self._failures[rank] = (error, answer)
            if len(self._failures) == self._workers and len({error for error, _ in self._failures.values()}) == 1:
                self._agreed = this
                self._settle(Outcome(answer))
        await self._wait(lambda: self._agreed == this or self._closed or generation != self._generation, AGREE_S)
        return self._agreed == this

    async def ended(self, losses: list[str]) -> None:
        """The group ended, for a reason per lost worker; for none if workers left because they could not serve.

        A worker whose peer is lost may fail because of that, and be heard first. So a failure that was not met by all
        alike is believed when the next generation says so as well.
        """
        async with self._changed:
            if self._number == 0 or self._outcome is not None:
                return
            if losses:
                self._losses += losses[:1]
                if len(self._losses) > self._restarts or OUT_OF_MEMORY in losses[0]:
                    self._settle(Outcome(losses=tuple(self._losses)))
            elif self._failures:
                if self._doubted:
                    _, answer = self._failures[min(self._failures)]
                    self._settle(Outcome(answer))
                self._doubted = True

    async def close(self) -> None:
        """Let the workers leave."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _open(self, generation: int, number: int) -> bool:
        return (generation, number) == (self._generation, self._number) and self._outcome is None

    def _settle(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s or POLL_S)
        except asyncio.TimeoutError:
            return False
        return True
