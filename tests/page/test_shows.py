"""What the page shows, in a real browser, is what the server answered; what its form says is what is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

Open = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_both_sides_show_what_the_server_answers(page: Open, site: str, run: Any, fake: Any) -> None:
    tab = await page()
    await run(tab)
    fields = {
        "text": await tab.locator("[name=text]").input_value(),
        "desk": await tab.locator("[name=desk]").input_value(),
    }
    for side, method in (("plain", "none"), ("steered", "mera")):
        body = {
            "inputs": fields,
            "steering": {"task": "demo_spam", "method": method},
            "details": "trace",
        }
        answer = httpx.post(f"{site}/generate", json=body).json()
        mera, place = answer["mera"], tab.locator(f"#side-{side}")
        assert await place.locator(".text").text_content() == answer["generated_text"]
        assert await place.locator(".answer b").text_content() == mera["answer"]["label"]
        chances = [f"{100 * chance:.0f} %" for chance in mera["answer"]["probabilities"].values()]
        assert await place.locator(".chances .number").all_text_contents() == chances
        reads = await place.locator(".token .error[data-when=before]").all_text_contents()
        assert len(reads) == len(mera["trace"])
        assert reads[0] == f"{mera['predicted_error']['before']:.2f}"
        if side == "plain":
            continue
        assert "Steered" in await place.locator(".badge").text_content()
        for view in ("before", "after", "shift"):
            await tab.locator(f"input[name=view][value={view}]").check()
            shown = await tab.locator("#map td").all_text_contents()
            columns = [
                [f"{value:.2f}" if view != "shift" or value else "·" for value in row[view]] for row in mera["trace"]
            ]
            assert shown == [column[layer] for layer in range(4) for column in columns]
        guarantee = await place.locator(".words").text_content()
        assert f"at least +{100 * mera['guarantee']['lower_bound']:.1f} points" in guarantee
        assert "probability 95 %" in guarantee


async def test_tokens_come_one_by_one_and_stop_frees_the_server(page: Open, site: str, expect: Any) -> None:
    tab = await page()
    await tab.locator("form details summary").click()
    for name, value in (("budget", "900"), ("temperature", "8"), ("seed", "3")):
        await tab.locator(f"#{name}").fill(value)
    await tab.locator("#run").click()
    for side in ("plain", "steered"):
        await tab.locator(f"#side-{side}.running .token").nth(3).wait_for()
    assert await tab.locator("#map td").count() >= 4
    await tab.locator("#stop").click()
    await expect(tab.locator("#side-steered .badge")).to_have_text("stopped")
    assert 3 < await tab.locator("#side-steered .token").count() < 900
    await tab.locator("#rates-pause").click()
    for _ in range(50):
        if "mera_requests_running 0.0" in httpx.get(f"{site}/metrics").text:
            break
        await tab.wait_for_timeout(100)
    assert "mera_requests_running 0.0" in httpx.get(f"{site}/metrics").text


async def test_an_abstention_is_explained(page: Open, expect: Any, run: Any) -> None:
    tab = await page()
    await tab.locator("#task").select_option("demo_desk_a")
    await run(tab)
    steered = tab.locator("#side-steered")
    await expect(steered.locator(".badge")).to_have_text("Abstained")
    await expect(steered.locator(".words")).to_contain_text("No candidate passed its test")
    await expect(steered.locator(".words")).to_contain_text("Not covered by a certificate")
    assert set(await tab.locator("#map td").all_text_contents()) == {"·"}


async def test_what_the_form_says_is_what_is_asked(page: Open, expect: Any, run: Any, fake: Any) -> None:
    asked: list[dict[str, Any]] = []

    async def keep(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        await route.fulfill(
            status=200, headers={"Content-Type": "text/event-stream"}, body=fake.events(fake.token(1, "x", last=True))
        )

    tab = await page(routes={"generate_stream": keep})
    await tab.locator("#alpha").fill("0,2")
    await tab.locator("form details summary").click()
    for name, value in (("budget", "5"), ("temperature", "0.7"), ("seed", "11")):
        await tab.locator(f"#{name}").fill(value)
    await tab.locator("#positions").select_option("all")
    await run(tab)
    plain, steered = sorted(asked, key=lambda body: body["steering"]["method"] != "none")
    assert plain["steering"] == {"task": "demo_spam", "method": "none"}
    assert steered["steering"] == {"task": "demo_spam", "method": "mera", "alpha": 0.2, "positions": "all"}
    assert plain["parameters"] == steered["parameters"] == {"max_new_tokens": 5, "temperature": 0.7, "seed": 11}
    assert plain["inputs"] == steered["inputs"]
    asked.clear()
    await tab.locator("#seed").fill("")
    await run(tab)
    one, other = (body["parameters"]["seed"] for body in asked)
    assert one == other  # both sides draw alike
    assert isinstance(one, int)
    asked.clear()
    await tab.locator("#method").select_option("contrastive")
    await tab.locator("#strength").fill("-2")
    await expect(tab.locator("#alpha")).to_be_hidden()
    await run(tab)
    steered = next(body for body in asked if body["steering"]["method"] != "none")
    assert steered["steering"] == {"task": "demo_spam", "method": "contrastive", "strength": -2, "positions": "all"}
    asked.clear()
    await tab.locator("#strength").fill("much")
    await tab.locator("#run").click()
    await expect(tab.locator("#refusal")).to_contain_text("Strength")
    assert not asked


async def test_a_whole_prompt_is_the_template_filled_in(page: Open, site: str, expect: Any) -> None:
    tab = await page()
    for name in ("demo_spam", "mmlu_high_school"):
        await tab.locator("#task").select_option(name)
        task = next(task for task in httpx.get(f"{site}/tasks/forms").json()["tasks"] if task["name"] == name)
        values = dict(task["examples"][0]["fields"])
        if "choices" in values:
            lettered = zip("ABCD", values["choices"], strict=True)
            values["choices"] = "\n".join(f"{letter}. {choice}" for letter, choice in lettered)
        await tab.locator("input[value=whole]").check()
        await expect(tab.locator("[name=prompt]")).to_have_value(task["template"].format(**values))
        await tab.locator("input[value=fields]").check()
        assert await tab.locator("#fields [name]").count() == len(task["fields"])


async def test_text_stays_text(page: Open, run: Any, fake: Any) -> None:
    tab = await page(
        routes={"generate_stream": fake.streamed(fake.token(1, fake.MARKUP), fake.token(2, "&lt;i&gt;", last=True))}
    )
    await tab.locator("[name=text]").fill(fake.MARKUP)
    await run(tab)
    steered = tab.locator("#side-steered")
    assert await steered.locator(".text").text_content() == f"{fake.MARKUP}&lt;i&gt;"
    assert await steered.locator(".answer > b").text_content() == fake.MARKUP
    assert await tab.locator("img").count() == 0
    assert await tab.title() == "mera-server"


async def test_points_are_shown_only_where_the_bound_allows(page: Open, site: str, expect: Any, fake: Any) -> None:
    probes = httpx.get(f"{site}/probes").json()["probes"]
    found = next(probe for probe in probes if probe["certified"])
    details = httpx.get(f"{site}/probes/{found['digest']}").json()
    for bound, allowed in ((0.01, True), (0.0, False), (-0.2, False)):
        shown = found | {"lower_bound": bound, "gain": 0.25, "epsilon": 0.0}
        routes = {
            "probes": fake.answered(body=json.dumps({"probes": [shown]})),
            f"probes/{found['digest']}": fake.answered(body=json.dumps(details)),
        }
        tab = await page(routes=routes)
        await tab.locator(".probe summary").click()
        await expect(tab.locator(".probe tbody tr")).to_have_count(8)
        words = await tab.locator(".probe").text_content()
        assert ("+1.0 points" in words) == allowed
        assert bool(re.search(r"[+−]\d", words)) == allowed
        assert ("better than not steering, with probability 95 %" in words) != allowed
        await tab.locator(".probe button").click()
        await expect(tab.locator(".probe tbody tr")).to_have_count(len(details["calibration"]["candidates"]))


CHANGED = "document.dispatchEvent(new Event('visibilitychange'))"
HIDE = f"Object.defineProperty(document, 'hidden', {{ value: true, configurable: true }}); {CHANGED}"
SHOW = f"delete document.hidden; {CHANGED}"


async def test_rates_come_from_the_metrics_and_rest_when_hidden(page: Open, expect: Any) -> None:
    asked = 0

    async def count(route: Any) -> None:
        nonlocal asked
        asked += 1
        lines = [f'mera_decisions_total{{decision="steered",reason="",task="t{i}"}} {i * asked}.0' for i in (1, 2)]
        lines += [
            'mera_decisions_total{decision="abstained",reason="no_probe",task="t"} 1e+00',
            "mera_requests_running 4.0",
        ]
        await route.fulfill(status=200, body="\n".join(["# HELP x", *lines, ""]))

    tab = await page(clock=True, routes={"metrics": count})
    await expect(tab.locator("#load")).to_contain_text("4 running")
    steered = tab.locator("tr[data-decision=steered] td")
    first = await steered.nth(1).text_content()
    await tab.clock.run_for(3100)
    await expect(steered.nth(1)).not_to_have_text(first)
    lately, ever, _ = await steered.all_text_contents()
    assert int(ever) % 3 == 0  # over tasks
    assert 0 < int(lately) < int(ever)
    await tab.evaluate(HIDE)
    before = asked
    await tab.clock.run_for(20_000)
    assert asked == before
    await tab.evaluate(SHOW)
    await tab.clock.run_for(100)
    assert asked == before + 1
    await tab.locator("#rates-pause").click()
    await expect(tab.locator("#rates-pause")).to_have_attribute("aria-pressed", "true")
    await tab.clock.run_for(20_000)
    assert asked == before + 1
