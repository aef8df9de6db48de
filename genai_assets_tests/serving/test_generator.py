"""Prompts, and the queue in front of the model."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from genai_assets.serving.generator import DrawingRoom, DrawingTimeout, ModelFacts, QueueFull, read_facts


def facts(template: str = "{caption}, {style} style") -> ModelFacts:
    return ModelFacts(model_version="v", style="fluent", prompt_template=template, resolution=64)


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("a cat", "a cat, fluent style"),
        ("a cat, fluent style", "a cat, fluent style"),
        ("a cat, Fluent Style.", "a cat, Fluent Style."),
        ("a river, effluent style", "a river, effluent style, fluent style"),
        ("in fluent style a cat", "in fluent style a cat, fluent style"),
        ("{style} {0} {caption}", "{style} {0} {caption}, fluent style"),
    ],
)
def test_the_style_is_added_unless_it_was_typed(typed: str, understood: str):
    assert facts().prompt(typed) == understood


def test_a_template_without_an_ending_always_applies():
    assert facts("fluent icon of {caption}").prompt("a cat") == "fluent icon of a cat"


def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot be served: .*model\.json"):
        read_facts(tmp_path)
    (tmp_path / "model.json").write_text('{"model_version": "v"}')
    with pytest.raises(ValueError, match="resolution"):
        read_facts(tmp_path)


def empty_room(max_waiting: int) -> DrawingRoom:
    return DrawingRoom(lambda: None, max_waiting=max_waiting)  # pyright: ignore[reportArgumentType]


def test_one_is_drawn_at_a_time_in_order_and_no_more_wait_than_may():
    room, gate, order = empty_room(2), threading.Event(), []

    def draw(number: int) -> int:
        gate.wait(10)
        order.append(number)
        return number

    async def scene() -> list[int]:
        drawings = [
            asyncio.create_task(room.run(lambda number=number: draw(number), timeout=10)) for number in (1, 2, 3)
        ]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull, match="2 requests are waiting") as full:
            await room.run(lambda: draw(4), timeout=10)
        assert full.value.retry_after >= 1
        gate.set()
        return list(await asyncio.gather(*drawings))

    assert asyncio.run(scene()) == order == [1, 2, 3]
    room.close()


def test_a_drawing_that_takes_too_long_is_given_up_but_counts_until_it_is_over():
    room, gate = empty_room(0), threading.Event()

    async def scene() -> None:
        with pytest.raises(DrawingTimeout):
            await room.run(lambda: gate.wait(10), timeout=0.05)
        with pytest.raises(QueueFull):
            await room.run(lambda: None, timeout=1)
        gate.set()
        deadline = time.monotonic() + 5
        while room.waiting and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert await room.run(lambda: "drawn", timeout=5) == "drawn"

    asyncio.run(scene())
    room.close()


def test_a_model_that_cannot_be_loaded_makes_the_room_failed(caplog: pytest.LogCaptureFixture):
    def load():
        raise ValueError("the folder is empty")

    room = DrawingRoom(load, max_waiting=1)
    room._thread.shutdown(wait=True)
    assert room.generator is None and room.failure == "ValueError: the folder is empty"
    assert "could not be loaded" in caplog.text
