"""What an agent hears while it works: steering prompts, each once, and pauses."""

from __future__ import annotations

import asyncio

from mesh.providers.live import Paused, Steering


def test_nothing_is_asked_while_nothing_waits() -> None:
    """If the node gave no hint, then taking gives nothing at once."""
    asked: list[int] = []
    steering = Steering(lambda _: asked.append(1))
    assert asyncio.run(steering()) == [] and asked == []


def test_what_waits_is_taken_once() -> None:
    """If a question is answered twice, then its texts are given once; the next question has a new number."""

    async def main() -> None:
        numbers: list[int] = []
        steering = Steering(lambda _: numbers.append(steering.open))
        for number, texts in ((1, ["a", "b"]), (2, ["c"])):
            steering.hint()
            asking = asyncio.ensure_future(steering())
            await asyncio.sleep(0)
            assert numbers[-1] == number and not asking.done()
            steering.taken(number, texts)
            steering.taken(number, texts)
            assert await asking == texts
        assert await steering() == [] and numbers == [1, 2]

    asyncio.run(main())


def test_an_empty_answer_uses_up_no_number() -> None:
    """If somebody recalled the prompts meanwhile, then nothing comes, and the number is used again."""

    async def main() -> None:
        steering = Steering()
        for texts in ([], ["a"]):
            steering.hint()
            asking = asyncio.ensure_future(steering())
            await asyncio.sleep(0)
            assert steering.open == 1
            steering.taken(1, texts)
            assert await asking == texts

    asyncio.run(main())


def test_an_agent_that_stops_waiting_gets_the_texts_at_its_next_look() -> None:
    """If an agent gives up waiting for an answer that was on its way, then nothing is lost."""

    async def main() -> None:
        steering = Steering()
        steering.hint()
        asking = asyncio.ensure_future(steering())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait((asking,))
        steering.taken(1, ["a"])
        assert await steering() == ["a"]

    asyncio.run(main())


def test_iterating_gives_each_text_as_it_comes() -> None:
    """If an agent iterates, then each text comes once, in order, hints in between included."""

    async def main() -> None:
        steering = Steering()
        heard: list[str] = []

        async def listen() -> None:
            async for text in steering:
                heard.append(text)
                if len(heard) == 3:
                    break

        listening = asyncio.ensure_future(listen())
        for number, texts in ((1, ["a", "b"]), (2, ["c"])):
            await asyncio.sleep(0)
            steering.hint()
            while not steering.open:
                await asyncio.sleep(0)
            steering.taken(number, texts)
        await listening
        assert heard == ["a", "b", "c"]

    asyncio.run(main())


def test_a_pause_lasts_until_it_is_over() -> None:
    """If a run is paused, then waiting for the end of the pause ends with it, at once when there is none."""

    async def main() -> None:
        paused = Paused()
        await paused.over()
        paused.turn(True)
        waiting = asyncio.ensure_future(paused.over())
        await asyncio.sleep(0)
        assert paused and not waiting.done()
        paused.turn(False)
        await waiting
        assert not paused

    asyncio.run(main())
