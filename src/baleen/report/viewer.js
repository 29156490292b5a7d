// The list of episodes: unpacked, filtered, searched, and drawn only where it is looked at.
(async () => {
  const { make, visible, asList, spoken, grouped, counted, statusKind } = episodeView;
  const ROW = 66; // a row's height in pixels, here and in the style sheet
  const MOST_MARKS = 500; // found places that are marked in one episode
  const part = (name) => document.querySelector(`#viewer [data-part="${name}"]`);
  const list = part("list"), rows = part("rows"), detail = part("detail"), tally = part("tally");
  if (!list) return;
  if (!globalThis.DecompressionStream) {
    tally.textContent = "This browser is too old to unpack the episodes (it has no DecompressionStream).";
    return;
  }

  async function unpack(node) {
    const bytes = Uint8Array.from(atob(node.textContent), (one) => one.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  }
  const pieces = [...document.querySelectorAll("script[data-episodes]")];
  const { columns, total } = JSON.parse(await unpack(document.querySelector("script[data-index]")));
  const count = columns.number.length;
  const verdictOf = (i) => (columns.outcome[i] === null ? "not scored" : columns.outcome[i] >= 0.5 ? "solved" : "failed");
  columns.verdict = columns.outcome.map((_, i) => verdictOf(i));

  const lines = new Map(); // piece -> its episodes as JSON lines; the few that were opened last
  async function linesOf(piece) {
    if (!lines.has(piece)) {
      lines.set(piece, unpack(pieces[piece]).then((text) => text.split("\n")));
      if (lines.size > 4) lines.delete(lines.keys().next().value);
    }
    return lines.get(piece);
  }

  // Filters. A row counts for a choice if that filter alone would keep it out: the counts say what a choice would show.
  const facets = ["domain", "family", "environment", "checkpoint", "verdict", "status", "file"].map((name) => {
    const values = [...new Set(columns[name])].sort();
    const select = make("select", { "data-facet": name }, make("option", { value: "" }, "any"), ...values.map((value, at) => make("option", { value: at }, "")));
    const named = { verdict: "outcome" }[name] ?? name;
    if (values.length > 1) part("facets").append(make("label", {}, make("span", {}, named), select));
    return { name, values, select, chosen: () => (select.value === "" ? undefined : values[select.value]) };
  });
  const [least, most, search, order] = ["least", "most", "search", "order"].map(part);
  let shown = [], current = -1, needle = "", hits = null, searched = 0, opening = 0;

  function filter() {
    const chosen = facets.map((facet) => facet.chosen());
    const [low, high] = [least, most].map((field) => (field.value === "" ? null : Number(field.value)));
    const counts = facets.map(() => new Map());
    const kept = [];
    for (let i = 0; i < count; i += 1) {
      const outcome = columns.outcome[i];
      if (hits && !hits.has(i)) continue;
      if ((low !== null && !(outcome !== null && outcome >= low)) || (high !== null && !(outcome !== null && outcome <= high))) continue;
      const against = facets.flatMap((facet, at) => (chosen[at] === undefined || columns[facet.name][i] === chosen[at] ? [] : [at]));
      if (!against.length) kept.push(i);
      facets.forEach((facet, at) => {
        if (against.length > 1 || (against.length === 1 && against[0] !== at)) return;
        const value = columns[facet.name][i];
        counts[at].set(value, (counts[at].get(value) ?? 0) + 1);
      });
    }
    facets.forEach((facet, at) => facet.values.forEach((value, place) => {
      facet.select.options[place + 1].textContent = visible(`${spoken(value) || "(none)"} (${grouped(counts[at].get(value) ?? 0)})`);
    }));
    const key = columns[order.value];
    if (key) kept.sort((a, b) => (key[b] ?? -Infinity) - (key[a] ?? -Infinity) || a - b);
    shown = kept;
    tell();
    list.scrollTop = 0;
    draw();
  }

  function tell() {
    const inPage = count === total ? "" : ` in this page, evenly taken from ${grouped(total)}`;
    const progress = searched < pieces.length && hits ? `, searching ${Math.floor((100 * searched) / pieces.length)}%` : "";
    tally.textContent = `${grouped(shown.length)} of ${grouped(count)} episodes${inPage}${progress}`;
  }

  function draw() {
    rows.style.height = `${shown.length * ROW}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 3);
    rows.replaceChildren(...shown.slice(first, last).map((i, at) => drawRow(i, first + at)));
    const at = shown.indexOf(current);
    if (at >= first && at < last) list.setAttribute("aria-activedescendant", `row-${current}`);
    else list.removeAttribute("aria-activedescendant");
    part("none").hidden = shown.length > 0;
    part("previous").disabled = at <= 0;
    part("next").disabled = at < 0 || at >= shown.length - 1;
  }

  function drawRow(i, at) {
    const status = columns.status[i];
    const facts = [spoken(columns.domain[i]), counted(columns.turns[i], "turn")];
    if (columns.tokens[i]) facts.push(`${grouped(columns.tokens[i])} tokens`);
    if (columns.seconds[i] !== null) facts.push(`${columns.seconds[i].toFixed(1)} s`);
    const verdict = columns.verdict[i];
    const row = make(
      "div", { class: "row", id: `row-${i}`, role: "option", "aria-selected": i === current ? "true" : "false", "aria-setsize": shown.length, "aria-posinset": at + 1 },
      make("div", { class: "first" }, make("span", { class: "place" }, `#${columns.number[i]}`), make("span", { class: "task" }, columns.task[i]),
        make("span", { class: `mark ${verdict.replace(" ", "-")}` }, { solved: "✓ solved", failed: "✗ failed", "not scored": "– not scored" }[verdict])),
      make("div", { class: "asked" }, columns.asked[i] || "(no question)"),
      make("div", { class: "facts" }, status !== "finished" && make("span", { class: `mark ${statusKind(status)}` }, spoken(status) || "no status"), facts.filter(Boolean).join(" · ")),
    );
    row.style.top = `${at * ROW}px`;
    row.dataset.row = i;
    return row;
  }

  /** Scrolls the list as little as needed to show the current row. */
  function reveal() {
    const at = shown.indexOf(current);
    if (at < 0) return;
    if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
    else if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
  }

  async function open(i, link = true) {
    current = i;
    reveal();
    draw();
    const mine = (opening += 1);
    const line = (await linesOf(columns.piece[i]))[columns.place[i]];
    if (mine !== opening) return; // another one was chosen meanwhile
    const held = { ...JSON.parse(line), number: columns.number[i] };
    part("episode").replaceChildren(episodeView.article(held, columns.verdict[i]));
    detail.scrollTop = 0;
    applyFolds();
    mark(true);
    if (link) history.replaceState(null, "", `#episode=${columns.number[i]}`);
  }

  const step = (by) => {
    if (!shown.length) return;
    const at = shown.indexOf(current);
    const to = Math.min(shown.length - 1, Math.max(0, at < 0 ? 0 : at + by));
    if (shown[to] !== current) open(shown[to]);
  };

  // Folding. A pressed button unfolds all of a kind, in this episode and in those opened after it.
  const kinds = { thinking: "thinking", calls: "call-arguments", results: "result" };
  const buttons = Object.keys(kinds).map(part);
  function applyFolds() {
    for (const button of buttons) if (button.getAttribute("aria-pressed") === "true") setFolds(button, true);
  }
  function setFolds(button, unfolded) {
    for (const each of part("episode").querySelectorAll(`details[data-kind="${kinds[button.dataset.part]}"]`)) each.open = unfolded;
  }

  // Searching reads every episode, a piece at a time, and shows what it has found so far.
  const said = ({ task, error, messages }) => [
    task?.id, error, messages.map((message) => [message?.content, message?.reasoning_content, asList(message?.tool_calls).map((call) => call?.function)]),
  ];
  const holds = (value) => (typeof value === "string" ? value.toLowerCase().includes(needle) : value && typeof value === "object" ? Object.values(value).some(holds) : false);
  async function find() {
    const wanted = search.value.trim().toLowerCase();
    if (wanted === needle) return;
    needle = wanted;
    hits = needle ? new Set() : null;
    searched = 0;
    const first = new Map();
    columns.piece.forEach((piece, i) => first.has(piece) || first.set(piece, i));
    for (let piece = 0; hits && piece < pieces.length; piece += 1) {
      const texts = (await unpack(pieces[piece])).split("\n");
      if (wanted !== needle) return; // the reader typed on
      texts.forEach((line, place) => { if (holds(said(JSON.parse(line).episode))) hits.add(first.get(piece) + place); });
      searched = piece + 1;
      if (piece % 16 === 15) filter();
    }
    filter();
    mark(false);
  }

  /** Marks what was searched for in the open episode, and unfolds what hides it. */
  function mark(jump) {
    if (!globalThis.Highlight) return;
    CSS.highlights.delete("found");
    if (!needle) return;
    const ranges = [];
    const walker = document.createTreeWalker(part("episode"), NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node && ranges.length < MOST_MARKS; node = walker.nextNode()) {
      if (node.parentElement.closest(".preview")) continue;
      const lower = node.data.toLowerCase();
      if (lower.length !== node.data.length) continue; // a few letters change length, and places would be wrong
      for (let at = lower.indexOf(needle); at >= 0 && ranges.length < MOST_MARKS; at = lower.indexOf(needle, at + needle.length)) {
        const range = new Range();
        range.setStart(node, at);
        range.setEnd(node, at + needle.length);
        ranges.push(range);
        const folded = node.parentElement.closest("details");
        if (folded && !node.parentElement.closest("summary")) folded.open = true;
      }
    }
    if (!ranges.length) return;
    CSS.highlights.set("found", new Highlight(...ranges));
    if (jump && detail.scrollHeight > detail.clientHeight) {
      const box = ranges[0].getBoundingClientRect(), frame = detail.getBoundingClientRect();
      if (box.top > frame.bottom) detail.scrollTop += box.top - frame.top - frame.height / 3;
    }
  }

  async function copy() {
    const held = episodeView.exactly((await linesOf(columns.piece[current]))[columns.place[current]]);
    const text = JSON.stringify(held.episode, null, 2);
    const button = part("copy"), label = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser refused";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  function follow() {
    const wanted = /^#episode=(\d+)$/.exec(location.hash);
    if (!wanted) return false;
    const i = columns.number.indexOf(Number(wanted[1]));
    if (i >= 0) {
      document.getElementById("viewer").scrollIntoView({ block: "nearest" });
      open(i, false);
    } else part("episode").replaceChildren(make("p", { class: "quiet" }, `Episode ${wanted[1]} is not in this page.`));
    return true;
  }

  const keys = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  list.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(keys[event.key]);
  });
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    open(Number(row.dataset.row));
    if (detail.scrollHeight === detail.clientHeight) detail.scrollIntoView({ block: "start" }); // narrow: it lies below
  });
  let drawing = 0;
  list.addEventListener("scroll", () => { drawing ||= requestAnimationFrame(() => { drawing = 0; draw(); }); });
  new ResizeObserver(draw).observe(list);
  part("filters").addEventListener("input", filter);
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(find, 200); });
  part("clear").addEventListener("click", () => {
    for (const field of [least, most, search, order, ...facets.map((facet) => facet.select)]) field.value = "";
    needle = "", hits = null;
    mark(false);
    filter();
  });
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("copy").addEventListener("click", copy);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const unfolded = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", unfolded);
      setFolds(button, unfolded);
    });
  }
  addEventListener("hashchange", follow);
  if (matchMedia("(max-width: 860px)").matches) part("filters").open = false;
  filter();
  if (!follow() && count) open(0, false);
})();
