"""Everybody can get at the page: legible in both schemes, on a narrow screen, by keyboard alone, by name, without motion."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

Open = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.asyncio(loop_scope="session")


NAMES = """() => [...document.querySelectorAll("input, select, textarea, button, summary, a")].map((one) =>
  [one.outerHTML.slice(0, 80), (one.getAttribute("aria-label") || one.labels?.[0]?.textContent || one.textContent || "").trim()])"""
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4")].map((one) => Number(one.tagName[1]))"""
FOCUS = """() => { const one = document.activeElement, style = getComputedStyle(one);
  return [one.id || one.name || one.className || one.tagName, style.outlineStyle, parseFloat(style.outlineWidth)]; }"""
# For every visible piece of text: its ink, and the colour of the nearest ground that is not transparent.
CONTRASTS = """() => {
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.checkVisibility() || one.closest("script, style") || one.disabled) continue;
    let ground = one;
    while (ground && numbers(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const colours = [getComputedStyle(one).color, getComputedStyle(ground ?? document.documentElement).backgroundColor];
    const [low, high] = colours.map((colour) => light(numbers(colour))).sort((one, other) => one - other);
    found.push([(high + 0.05) / (low + 0.05), one.className + ": " + walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
async def test_it_is_legible_and_fits(page: Open, scheme: str, width: int, expect: Any, run: Any) -> None:
    tab = await page(width=width, color_scheme=scheme)
    await tab.locator("form details summary").click()
    await run(tab)
    for summary in await tab.locator(".probe > summary").all():
        await summary.click()
    await expect(tab.locator(".probe table")).to_have_count(2)
    contrasts = await tab.evaluate(CONTRASTS)
    assert len(contrasts) > 150
    assert not [found for found in contrasts if found[0] < 4.5]
    ground = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) < 60) == (scheme == "dark")
    assert await tab.evaluate("document.documentElement.scrollWidth") == width


async def test_everything_has_a_name_and_a_place(page: Open, expect: Any, run: Any) -> None:
    tab = await page()
    await run(tab)
    assert not [html for html, name in await tab.evaluate(NAMES) if not name]
    levels = await tab.evaluate(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert await tab.evaluate("document.documentElement.lang") == "en"
    for role in ("banner", "navigation", "main", "status"):
        await expect(tab.get_by_role(role)).to_have_count(1)


async def test_the_keyboard_reaches_everything_once_and_is_never_held(page: Open, expect: Any, fake: Any) -> None:
    tab = await page()
    await tab.locator("[name=text]").focus()
    await tab.keyboard.press("Control+Enter")
    await expect(tab.locator("#outcome")).to_contain_text("Decision")
    await tab.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges()")
    await tab.evaluate("document.querySelector('.skip').focus()")
    stops = []
    for _ in range(40):
        name, style, width = await tab.evaluate(FOCUS)
        if stops and name == "BODY":
            break
        stops.append(name)
        assert style != "none" or name == "BODY", name
        assert width >= 2, name
        await tab.keyboard.press("Tab")
    assert name == "BODY"  # out at the end: no trap
    form = ["task", "method", "alpha", "example", "mode", "text", "desk", "SUMMARY", "run"]
    assert stops[: 6 + len(form)] == ["skip", *["A"] * 5, *form]
    behind = stops[6 + len(form) :]
    assert behind == ["token", "token", "view", "cell", "scroll", "rates-pause", "SUMMARY", "SUMMARY"]


async def test_arrow_keys_walk_through_tokens_and_cells(page: Open, expect: Any, run: Any, fake: Any) -> None:
    tab = await page(
        routes={
            "generate_stream": fake.streamed(fake.token(1, " a"), fake.token(2, " b"), fake.token(3, " c", last=True))
        }
    )
    await run(tab)
    tokens = tab.locator("#side-steered .token")
    await tokens.first.focus()
    await tab.keyboard.press("ArrowRight")
    await expect(tokens.nth(1)).to_be_focused()
    await tab.keyboard.press("End")
    await expect(tokens.nth(2)).to_be_focused()
    await expect(tab.locator("#side-steered .readout")).to_contain_text(
        "Token 3, “␣c”; predicted error 0.50 before, 0.040 after, moved"
    )
    await tab.keyboard.press("ArrowRight")
    await expect(tokens.nth(2)).to_be_focused()
    assert await tab.locator("#side-steered .token[tabindex='0']").count() == 1  # still one stop of the tab key
    await tab.locator("#map button").first.focus()
    await tab.keyboard.press("ArrowDown")
    await tab.keyboard.press("ArrowDown")
    await tab.keyboard.press("ArrowRight")
    await expect(tab.locator("#cell")).to_contain_text(
        "Layer 2, token 2 “␣b”: moved by 0.020 of its length; predicted error 0.50 before"
    )


async def test_nothing_moves_for_those_who_want_it_still(page: Open) -> None:
    for wish, moves in (("reduce", False), ("no-preference", True)):
        tab = await page(reduced_motion=wish)
        await tab.evaluate("document.getElementById('side-plain').classList.add('running')")
        name = await tab.evaluate(
            "getComputedStyle(document.querySelector('#side-plain .text'), '::after').animationName"
        )
        assert (name != "none") == moves
