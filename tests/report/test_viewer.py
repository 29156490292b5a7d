"""The episode viewer in a real browser: what it hides, finds and marks, and that no text acts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import viewer_episodes as made

from baleen.report.page import write_report
from baleen.report.viewer import write_viewer
from browser import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SEVERAL, MANAGED, BROKEN, HOSTILE, NONSENSE = 1, 2, 3, 4, 5
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "Home": 36, "End": 35}
CONTRASTS = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => colour.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.querySelector('#viewer'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.matches(':disabled, option')) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(under(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(node.outerHTML.slice(0, 120));
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install it to try the episode viewer in a browser")
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("browser"))
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.send("Browser.grantPermissions", permissions=permissions)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """Forty-five episodes in one page, its address."""
    nonsense = {"messages": [None, 7, {"role": 3, "tool_calls": {}}, {"role": "assistant", "tool_calls": [None]}]}
    nonsense |= {"task": "?", "rewards": [], "timings": 3, "completions": [[]], "context_events": [3], "status": None}
    rows = [made.several_turns(), made.managed(), made.failed_world(), made.hostile(), nonsense, *made.many(40)]
    file = write_rows(tmp_path_factory.mktemp("episodes") / "episodes.jsonl", rows)
    return write_viewer([file], file.with_name("viewer.html")).as_uri()


@pytest.fixture
def page(browser, viewer):
    """The viewer afresh; every test also asserts that nothing went wrong and nothing was asked of anyone."""
    browser.dress(1280, 860, "light")
    yield show(browser, viewer)
    strangers = [url for url in browser.requested() if not url.startswith(("file:///tmp/", "about:"))]
    assert not strangers, "requests that left the page"
    errors = [event for event in browser.events if event.get("method") == "Runtime.consoleAPICalled"]
    assert browser.complaints() + errors == []


def write_rows(path, rows):
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def show(browser, url, number=None):
    """Opens the page, at an episode where one is named."""
    browser.open("about:blank")
    browser.events.clear()
    browser.open(url if number is None else f"{url}#episode={number}")
    browser.until("document.querySelector('article')")
    return browser


def choose(page, number):
    page.run(f"location.hash = 'episode={number}'")
    page.until(f"document.querySelector('article h3')?.innerText.startsWith('#{number} ')")


def text_of(page, selector):
    return page.run(f"document.querySelector({json.dumps(selector)})?.innerText")


def texts_of(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")


def count(page, selector):
    return page.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def pick(page, facet, value):
    """Chooses an option by its name, without the number behind it."""
    script = f"(() => {{ const select = document.querySelector('[data-facet={facet}]');"
    script += f"const found = [...select.options].find((one) => one.text.replace(/ [(]\\d+[)]$/, '') === '{value}');"
    script += "select.value = found.value; select.dispatchEvent(new Event('input', {bubbles: true}));"
    return page.run(script + "return found.text; })()")


def tally(page):
    return text_of(page, "[data-part=tally]")


def search(page, words, expected):
    page.run("document.querySelector('[data-part=search]').value = ''")
    page.type("[data-part=search]", words)
    page.until(f"document.querySelector('[data-part=tally]').innerText === '{expected} of 45 episodes'")


def press(page, key):
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])


def test_domain_status_and_outcome_narrow_the_list_together(page):
    rows = [json.loads(json.dumps(row)) for row in made.many(40)]
    tools = [row for row in rows if row["task"]["domain"] == "tools" and row["status"] == "finished"]
    solved = [row["task"]["id"] for row in tools if row["rewards"]["outcome"] == 1]
    pick(page, "domain", "tools")
    pick(page, "status", "finished")
    assert pick(page, "verdict", "solved") == f"solved ({len(solved) + 1})"
    assert tally(page) == f"{len(solved) + 1} of 45 episodes"
    page.run("document.querySelector('[data-part=list]').style.height = '9000px'")
    page.until(f"document.querySelectorAll('.row').length === {len(solved) + 1}")
    assert texts_of(page, ".row .task") == ["library-several", *solved]
    page.click("[data-part=clear]")
    assert tally(page) == "45 of 45 episodes"


def test_a_range_of_rewards_leaves_out_what_was_not_scored(page):
    page.type("[data-part=least]", "0.2")
    page.type("[data-part=most]", "0.3")
    assert texts_of(page, ".row .task") == ["search-long"]
    page.click("[data-part=clear]")
    pick(page, "verdict", "not scored")
    assert "clinic-broken" in texts_of(page, ".row .task")


def test_an_empty_list_says_so(page):
    page.type("[data-part=least]", "7")
    assert count(page, ".row") == 0
    assert text_of(page, "[data-part=none]") == "No episode passes these filters."


def test_a_search_reads_what_was_said_and_unfolds_the_place(page):
    search(page, "Search NUMBER 7", 1)
    assert texts_of(page, ".row .task") == ["search-long"]
    page.click(".row")
    page.until("document.querySelector('article h3').innerText === '#2 search-long'")
    assert page.run("CSS.highlights.get('found').size") == 1
    assert texts_of(page, ".thinking[open] pre") == ["Search number 7."]
    search(page, "find_loan", 43)
    search(page, "Looks a loan up by its title", 0)  # a tool's description is not what was said
    page.click("[data-part=clear]")
    assert tally(page) == "45 of 45 episodes"
    assert page.run("CSS.highlights.has('found')") is False


def test_episodes_can_be_put_in_order(page):
    page.run("order = document.querySelector('[data-part=order]'), order.value = 'turns', 0")
    page.run("order.dispatchEvent(new Event('input', {bubbles: true})), 0")
    assert texts_of(page, ".row .task")[0] == "search-long"


def test_thinking_and_long_texts_are_folded_and_short_ones_are_not(page):
    choose(page, SEVERAL)
    assert count(page, ".thinking") == 4
    assert count(page, ".thinking[open]") == 0
    assert text_of(page, ".thinking summary").split("\n")[:2] == ["Thinking", "29 characters"]
    assert page.run("[...document.querySelectorAll('.call-arguments')].map((each) => each.open)") == [True, True, False]
    assert page.run("[...document.querySelectorAll('.result')].map((each) => each.open)") == [True, True, False]
    page.click(".thinking summary")
    assert texts_of(page, ".thinking[open] pre") == ["First I look both of them up."]


def test_a_kind_is_unfolded_in_this_episode_and_in_those_that_follow(page):
    choose(page, SEVERAL)
    page.click("[data-part=thinking]")
    page.click("[data-part=results]")
    assert count(page, ".thinking[open]") == 4
    assert count(page, ".result[open]") == 3
    page.click("[data-part=next]")
    page.until("document.querySelectorAll('.thinking[open]').length === 13")
    page.click("[data-part=thinking]")
    assert count(page, ".thinking[open]") == 0


def test_dropped_reasoning_is_marked_where_it_was_and_where_it_went(page):
    choose(page, SEVERAL)
    dropped = page.run("[...document.querySelectorAll('.thinking')].map((each) => each.classList.contains('dropped'))")
    assert dropped == [True, True, True, False]
    assert texts_of(page, ".thinking.dropped .badge") == ["dropped at message 8"] * 3
    assert count(page, ".thinking.dropped summary s") == 3
    assert count(page, ".divider") == 1
    assert page.run("document.querySelector('.divider.dropped').nextSibling.dataset.message") == "8"
    assert "the thinking of 3 turns above (494 characters)" in text_of(page, ".divider.dropped")


def test_a_context_that_was_made_smaller_says_by_what_and_dims_what_went(page):
    choose(page, MANAGED)
    first, second = texts_of(page, ".divider.context")
    assert first == (
        "Context made smaller: discard-75 104,000 → 31,000 tokens; messages 2–11 are not in the context from here on"
    )
    assert second.startswith("Context made smaller: summary 105,000 → 2,000 tokens; messages 12–23 are not")
    after = "[...document.querySelectorAll('.divider.context')].map((each) => each.nextSibling.dataset.message)"
    assert page.run(after) == ["14", "24"]
    gone = page.run("[...document.querySelectorAll('.message.gone')].map((each) => each.dataset.message)")
    assert gone == [str(index) for index in range(2, 24, 2)]
    page.click(".divider .summary summary")
    assert text_of(page, ".divider .summary pre") == "So far: nothing in 0 to 5."


def test_parallel_calls_stand_beside_each_other_each_with_its_result(page):
    choose(page, SEVERAL)
    first, second = page.run(
        "[...document.querySelectorAll('.calls.several .call')].map((each) => {"
        "const box = each.getBoundingClientRect(); return [box.x, box.y, each.innerText]; })"
    )
    assert first[0] < second[0]
    assert first[1] == second[1]
    assert "The Whales" in first[2]
    assert "Tarivo" in first[2]
    assert "Error" in second[2]
    assert "case-sensitive" in second[2]


def test_numbers_are_shown_as_they_were_written(page):
    choose(page, SEVERAL)
    shown = text_of(page, ".result pre")
    assert '"serial": 12345678901234567890' in shown
    assert '"price": 1.50' in shown


def test_what_was_not_scored_is_never_a_zero(page):
    choose(page, BROKEN)
    assert text_of(page, ".rewards") == "outcome\nnot scored"
    assert text_of(page, ".failure pre") == "the sandbox was killed"
    assert texts_of(page, ".badges .badge") == ["not scored", "infrastructure error"]
    assert "tries\n3" in text_of(page, "dl.facts")


def test_faults_times_and_tokens_are_shown(page):
    choose(page, SEVERAL)
    assert texts_of(page, ".faults li") == ["missing_end"]
    assert texts_of(page, ".message.assistant header .facts")[0].startswith(
        "prompt 100, sampled 20 tokens · policy 0.50 s · tools 0.25 s"
    )
    assert "86 sampled, longest prompt 250" in text_of(page, "dl.facts")


def test_hostile_text_is_text_everywhere(page):
    choose(page, HOSTILE)
    for kind in ("thinking", "calls", "results"):
        page.click(f"[data-part={kind}]")
    page.click(".known summary")
    page.run("new Promise(requestAnimationFrame)")
    assert page.run("window.hacked") is None
    assert count(page, "#viewer :is(script, img, iframe, svg, object, link, style, [onerror], [onload], [src], a)") == 0
    for selector in ("h3", ".thinking pre", ".call dt", ".call dd", ".call .name", ".result pre", ".failure pre"):
        shown = text_of(page, selector)
        assert "</script><script>window.hacked = 1</script><img src=https" in shown
        assert "⟨U+2028⟩ line ⟨U+202E⟩ gnirts ⟨U+2066⟩ ⟨U+0000⟩ ⟨U+001B⟩[31m" in shown
    assert "⟨U+D800⟩ half ⟨U+DFFF⟩" in texts_of(page, ".message > pre.said")[-1]
    options = texts_of(page, "[data-facet=domain] option")
    assert any("⟨U+202E⟩" in option or "</script>" in option for option in options)


def test_the_page_may_turn_no_text_into_markup_even_by_mistake(page):
    assert page.run("(() => { try { document.body.innerHTML = ''; } catch { return 'refused'; } })()") == "refused"
    assert page.complaints()  # that refusal
    page.events = [event for event in page.events if event.get("method") != "Log.entryAdded"]


def test_a_copied_episode_is_the_record_itself(page):
    choose(page, HOSTILE)
    page.send("Page.bringToFront")
    page.click("[data-part=copy]")
    page.until("document.querySelector('[data-part=copy]').innerText === 'Copied'")
    copied = json.loads(page.run("navigator.clipboard.readText()"))
    original = made.hostile()
    assert copied["messages"] == original["messages"]
    assert copied["rewards"] == original["rewards"]


def test_records_that_make_no_sense_are_shown_as_far_as_they_go(page):
    choose(page, NONSENSE)
    assert count(page, ".message") == 4
    assert text_of(page, ".rewards") == "no rewards"


def test_arrow_keys_walk_the_list_and_the_address_follows(page):
    page.run("document.querySelector('[data-part=list]').focus()")
    for key, number in (("ArrowDown", 2), ("ArrowDown", 3), ("ArrowUp", 2), ("End", 45), ("Home", 1)):
        press(page, key)
        page.until(f"location.hash === '#episode={number}'")
        assert text_of(page, "article h3").startswith(f"#{number} ")
        active = page.run("document.querySelector('[data-part=list]').getAttribute('aria-activedescendant')")
        assert page.run(f"document.getElementById('{active}').ariaSelected") == "true"


def test_an_address_leads_to_its_episode(page, viewer):
    show(page, viewer, 30)
    assert text_of(page, "article h3").startswith("#30 ")
    box = "document.querySelector('.row[aria-selected=true]').getBoundingClientRect()"
    assert page.run(f"{box}.bottom <= innerHeight && {box}.top > 0")
    page.run("location.hash = 'episode=4711'")
    page.until("!document.querySelector('article')")
    assert text_of(page, "[data-part=episode]") == "Episode 4711 is not in this page."


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("number", [SEVERAL, MANAGED, BROKEN])
def test_every_text_stands_out_from_its_ground(page, scheme, number):
    page.dress(1280, 860, scheme)
    choose(page, number)
    for kind in ("thinking", "calls", "results"):
        page.click(f"[data-part={kind}]")
    page.click("[data-part=episode]")
    assert page.run(CONTRASTS) == []


@pytest.mark.parametrize("number", [SEVERAL, MANAGED, HOSTILE])
def test_a_narrow_window_has_no_sideways_scroll(page, viewer, number):
    page.dress(400, 800, "light")
    show(page, viewer, number)
    assert not page.run("document.querySelector('[data-part=filters]').open")
    page.click("[data-part=filters] summary")
    page.click("[data-part=results]")
    assert page.run("document.documentElement.scrollWidth") == 400
    outside = "[...document.querySelectorAll('#viewer *')].filter((each) => each.checkVisibility() &&"
    outside += "each.getBoundingClientRect().right > 400 && !each.closest('summary, .row, select, .badges'))"
    assert page.run(f"{outside}.map((each) => each.outerHTML.slice(0, 100))") == []


def test_thousands_of_episodes_stay_small_and_only_what_is_seen_is_drawn(page, tmp_path):
    file = write_rows(tmp_path / "many.jsonl", made.many(1000))
    path = write_viewer([file], tmp_path / "many.html")
    assert path.stat().st_size < 700_000
    show(page, path.as_uri(), 900)
    assert tally(page) == "1,000 of 1,000 episodes"
    assert 5 < count(page, ".row") < 40
    assert text_of(page, "article h3").startswith("#900 ")
    page.run("document.querySelector('[data-part=list]').scrollTop = 0")
    page.until("document.querySelector('.row .place').innerText === '#1'")
    assert page.run("document.querySelector('.row').ariaSetSize") == "1000"


def test_the_report_holds_the_viewer(page, run_folder):
    show(page, write_report(run_folder).as_uri(), 7)
    assert text_of(page, "article h3").startswith("#7 ")
    assert tally(page) == "60 of 60 episodes"
    page.until("document.querySelector('.panes').getBoundingClientRect().top < innerHeight")
    pick(page, "checkpoint", "mixed rl")
    assert tally(page) == "30 of 60 episodes"
