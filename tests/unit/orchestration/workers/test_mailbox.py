"""The mailbox: a request's outcome for every order of messages from workers and their group's end."""

from __future__ import annotations

import asyncio

import pytest

from orchestration.workers import mailbox as mailbox_module
from orchestration.workers.mailbox import OUT_OF_MEMORY, RESTARTS, Mailbox, Outcome


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(mailbox_module, "POLL_S", 0.05)
    monkeypatch.setattr(mailbox_module, "AGREE_S", 0.05)


def run(scenario) -> None:
    async def fresh() -> None:
        await scenario(Mailbox())

    asyncio.run(fresh())


def test_an_older_generation_is_not_heard():
    async def scenario(mailbox):
        number = await mailbox.post("train")
        old = await mailbox.begin(2)
        assert await mailbox.take(old, 0) == (number, "train")
        new = await mailbox.begin(2)
        await mailbox.answer(old, number, "late")
        assert await mailbox.read(number) is None
        assert await mailbox.take(old, 0) == (-1, None)
        assert await mailbox.take(new, 0) == (number, "train")
        await mailbox.answer(new, number, "served anew")
        assert await mailbox.read(number) == Outcome("served anew")

    run(scenario)


def test_an_answer_to_an_older_request_is_not_heard():
    async def scenario(mailbox):
        group = await mailbox.begin(1)
        first = await mailbox.post("first")
        await mailbox.answer(group, first, 1)
        second = await mailbox.post("second")
        await mailbox.answer(group, first, 1)
        assert await mailbox.read(second) is None
        assert await mailbox.read(first) is None
        assert await mailbox.take(group, first) == (second, "second")

    run(scenario)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_all_workers_meet_alike_is_the_answer_and_the_group_lives_on(workers):
    async def scenario(mailbox):
        group, number = await mailbox.begin(workers), await mailbox.post("bad")
        verdicts = await asyncio.gather(
            *(mailbox.fail(group, number, rank, "KeyError: x", f"failed on {rank}") for rank in range(workers))
        )
        assert verdicts == [True] * workers
        assert (await mailbox.read(number)).answer in {f"failed on {rank}" for rank in range(workers)}
        following = await mailbox.post("good")
        assert await mailbox.take(group, number) == (following, "good")

    run(scenario)


@pytest.mark.parametrize("errors", [["reset by peer"], ["disk full", "reset by peer"]])
def test_what_some_workers_meet_is_believed_the_second_time(errors):
    async def scenario(mailbox):
        number = await mailbox.post("train")
        for attempt in range(2):
            group = await mailbox.begin(2)
            said = (mailbox.fail(group, number, rank, error, error) for rank, error in enumerate(errors))
            assert not any(await asyncio.gather(*said))
            assert await mailbox.read(number) is None
            await mailbox.ended([])
            assert await mailbox.read(number) == (Outcome(errors[0]) if attempt else None)

    run(scenario)


def test_an_error_beside_a_lost_worker_is_never_the_answer():
    async def scenario(mailbox):
        number = await mailbox.post("train")
        for _ in range(RESTARTS):
            group = await mailbox.begin(2)
            assert not await mailbox.fail(group, number, 0, "reset by peer", "reset by peer")
            await mailbox.ended(["rank 1 died"])
        group = await mailbox.begin(2)
        await mailbox.answer(group, number, "served")
        assert await mailbox.read(number) == Outcome("served")

    run(scenario)


def test_losses_count_for_one_request_only():
    async def scenario(mailbox):
        for _ in range(4):
            number = await mailbox.post("deadly")
            for attempt in range(RESTARTS + 1):
                await mailbox.begin(2)
                assert await mailbox.read(number) is None
                await mailbox.ended([f"death {attempt}"])
            assert (await mailbox.read(number)).losses == tuple(f"death {i}" for i in range(RESTARTS + 1))
            await mailbox.ended(["while idle"])

    run(scenario)


def test_a_loss_for_want_of_memory_is_told_at_once():
    async def scenario(mailbox):
        number = await mailbox.post("large")
        await mailbox.begin(2)
        await mailbox.ended([told := f"worker 0: killed since {OUT_OF_MEMORY}"])
        assert (await mailbox.read(number)).losses == (told,)
        group, number = await mailbox.begin(2), await mailbox.post("smaller")
        await mailbox.answer(group, number, "done")
        assert await mailbox.read(number) == Outcome("done")

    run(scenario)


def test_a_failure_after_the_answer_restarts_the_group_and_blames_no_request():
    async def scenario(mailbox):
        group, number = await mailbox.begin(2), await mailbox.post("train")
        await mailbox.answer(group, number, "done")
        assert not await mailbox.fail(group, number, 1, "late", "late")
        for _ in range(2):
            following = await mailbox.post("next")
            await mailbox.ended([])
            assert await mailbox.read(following) is None

    run(scenario)


def test_closing_lets_everybody_leave():
    async def scenario(mailbox):
        group = await mailbox.begin(2)
        waiting = asyncio.create_task(mailbox.take(group, 0))
        await asyncio.sleep(0)
        await mailbox.close()
        assert await waiting == (-1, None)
        assert await mailbox.take(group, 0) == (-1, None)

    run(scenario)
