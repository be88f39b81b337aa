"""What goes wrong is told in words, in its place, and the page goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

Open = Callable[..., Awaitable[Any]]

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]


CUT = "the stream is cut"
DIED = {"error": {"code": "engine_failed", "message": "engine: the loop died"}}


@pytest.mark.parametrize(
    ("status", "code", "told", "words"),
    [
        (429, "overloaded", "server: full", ["no room", "429", "in 7 s", "server: full"]),
        (429, "rate_limited", "key: too often", ["More is asked than is allowed (429)", "in 7 s"]),
        (503, "engine_failed", "engine: the loop died", ["not ready", "503", "the loop died"]),
        (422, "invalid_input", "inputs: too long", ["Refused", "inputs: too long"]),
        (502, "", "", ["Refused", "502"]),
        (200, "", "engine: the loop died", ["broke off", "the loop died"]),
        (200, "", CUT, ["broke off", "before the last token"]),
    ],
)
async def test_a_failure_is_told_where_it_happened(
    page: Open, expect: Any, run: Any, fake: Any, status: int, code: str, told: str, words: list[str]
) -> None:
    handler = fake.streamed(fake.token(1, "so far"), *([] if told == CUT else [DIED]))
    if status != 200:
        body = fake.error(code, told) if told else "<html>bad gateway</html>"
        handler = fake.answered(status, body, **{"Retry-After": "7"})
    tab = await page(routes={"generate_stream": handler})
    await run(tab)
    for side in ("plain", "steered"):
        place = tab.locator(f"#side-{side}")
        await expect(place.locator(".badge")).to_have_text("failed")
        for part in words:
            await expect(place.get_by_role("alert")).to_contain_text(part)
        assert await place.locator(".token").count() == ("broke off" in words)
    assert await tab.locator("#stop").is_disabled()


async def test_a_server_out_of_reach(page: Open, expect: Any, run: Any) -> None:
    async def gone(route: Any) -> None:
        await route.abort()

    tab = await page(routes={"generate_stream": gone})
    await run(tab)
    await expect(tab.locator("#side-plain").get_by_role("alert")).to_contain_text("cannot be reached")


async def test_stop_ends_both_sides(page: Open, expect: Any) -> None:
    async def never(route: Any) -> None:
        return  # the answer is not given

    tab = await page(routes={"generate_stream": never})
    await tab.locator("#run").click()
    await expect(tab.locator("#side-steered .badge")).to_have_text("running")
    await tab.locator("#stop").click()
    for side in ("plain", "steered"):
        await expect(tab.locator(f"#side-{side} .badge")).to_have_text("stopped")
    await expect(tab.locator("#outcome")).to_contain_text("stopped")


async def test_the_page_waits_for_the_model(page: Open, expect: Any, fake: Any) -> None:
    asked = 0

    async def later(route: Any) -> None:
        nonlocal asked
        asked += 1
        await (
            route.continue_()
            if asked > 1
            else fake.answered(503, fake.error("not_ready", "loading"), **{"Retry-After": "1"})(route)
        )

    tab = await page(ready=False, routes={"tasks/forms": later})
    await expect(tab.locator("#notice")).to_contain_text("not ready (503)")
    assert await tab.locator("#run").is_disabled()
    await expect(tab.locator("#run")).to_be_enabled()
    await expect(tab.locator("#notice")).to_be_hidden()


async def test_a_key_is_asked_for_sent_and_kept_in_the_tab(
    page: Open, site: str, expect: Any, run: Any, fake: Any
) -> None:
    sent: list[str | None] = []

    async def guarded(route: Any) -> None:
        given = route.request.headers.get("authorization")
        sent.append(given)
        await (
            route.continue_()
            if given == "Bearer secret-1"
            else fake.answered(401, fake.error("unauthorized", "a key is needed"))(route)
        )

    tab = await page(
        ready=False, routes=dict.fromkeys(("tasks/forms", "generate_stream", "metrics", "info", "probes"), guarded)
    )
    await expect(tab.locator("#notice")).to_contain_text("wants an API key (401)")
    await tab.get_by_label("Key", exact=True).fill("wrong")
    await tab.keyboard.press("Enter")
    await expect(tab.locator("#notice")).to_contain_text("does not know this API key")
    await tab.get_by_label("Key", exact=True).fill("secret-1")
    await tab.keyboard.press("Enter")
    await tab.locator("#run:enabled").wait_for()
    await run(tab)
    assert sent[0] is None
    assert sent[-1] == "Bearer secret-1"
    assert await tab.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
    assert await tab.locator("#key").input_value() == ""
    await tab.reload()
    await tab.locator("#run:enabled").wait_for()
    await tab.locator("#key-forget").click()
    await tab.reload()
    await expect(tab.locator("#notice")).to_contain_text("401")
