// One episode as a column of cards. Everything an episode says enters the page as a text node: no markup is ever parsed.
const episodeView = (() => {
  const LONG_RESULT = 700, LONG_ARGUMENTS = 500, MANY_LINES = 14;
  const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]|\p{Surrogate}/gu;

  /** Text with what could deceive the eye (controls, directions, half characters) written out. */
  const visible = (text) => text.replace(UNSEEN, (one) => `⟨U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
  const text = (value) => (typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value, null, 2));
  const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
  const grouped = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 4 });
  const counted = (count, one) => `${grouped(count)} ${one}${count === 1 ? "" : "s"}`;
  const spoken = (name) => String(name).replaceAll("_", " ");
  const asList = (value) => (Array.isArray(value) ? value : []);
  const asRow = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
  const seconds = (value) => (value < 60 ? `${value.toFixed(value < 10 ? 2 : 1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`);

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : visible(String(value)));
    }
    node.append(...children.filter((child) => child || child === 0).map((child) => (child instanceof Node ? child : visible(String(child)))));
    return node;
  }

  /** JSON text with its numbers as they were written, however many digits they have. */
  function exactly(source) {
    const keep = (_, value, context) => (typeof value === "number" && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value);
    return JSON.parse(source, keep);
  }

  function parsed(value) {
    if (typeof value !== "string" || !/^\s*[[{]/.test(value)) return value;
    try { return exactly(value); } catch { return value; }
  }

  const isLong = (value, most) => value.length > most || value.split("\n", MANY_LINES + 1).length > MANY_LINES;
  const preview = (value) => value.slice(0, 400).replace(/\s+/g, " ").trim().slice(0, 140);
  const block = (value, kind) => make("pre", { class: kind }, value);

  function fold(kind, heading, body, open, extra = "") {
    return make("details", { class: `fold ${kind} ${extra}`, "data-kind": kind, open }, make("summary", {}, ...heading), ...[body].flat());
  }

  /** A message's content; clients may send it as a list of parts, of which only text can be read here. */
  function contentOf(message) {
    if (!Array.isArray(message.content)) return text(message.content);
    return message.content.map((part) => asRow(part).text ?? `[${asRow(part).type ?? "part"}: ${text(part).length} characters]`).map(text).join("\n");
  }

  function argumentsView(given) {
    const value = parsed(given);
    if (!value || typeof value !== "object" || Array.isArray(value)) return block(text(value), "arguments");
    const pairs = Object.entries(value).flatMap(([name, one]) => [make("dt", {}, name), make("dd", {}, text(one))]);
    return pairs.length ? make("dl", { class: "arguments" }, ...pairs) : make("p", { class: "quiet" }, "no arguments");
  }

  function callView(call, result) {
    const asked = asRow(asRow(call).function);
    const given = text(asked.arguments);
    const heading = [make("code", { class: "name" }, asked.name ?? "?"), make("span", { class: "preview" }, preview(given))];
    const answer = result ? resultView(result) : make("p", { class: "quiet" }, "No result.");
    return make("div", { class: "call" }, fold("call-arguments", heading, argumentsView(given), !isLong(given.replaceAll("\\n", "\n"), LONG_ARGUMENTS)), answer);
  }

  function resultView(message) {
    const plain = contentOf(message);
    const shown = text(parsed(plain));
    const failed = /^\s*error\b/i.test(plain);
    const heading = [make("b", {}, failed ? "Error" : "Result"), make("span", {}, counted(plain.length, "character")), make("span", { class: "preview" }, preview(plain))];
    return fold("result", heading, block(shown, "said"), !isLong(shown, LONG_RESULT), failed ? "failed" : "");
  }

  function thinkingView(thought, droppedAt) {
    const gone = droppedAt !== undefined;
    const heading = [
      make(gone ? "s" : "b", {}, "Thinking"),
      make("span", {}, counted(thought.length, "character")),
      gone && make("span", { class: "badge warn" }, `dropped at message ${droppedAt}`),
      make("span", { class: "preview" }, preview(thought)),
    ];
    return fold("thinking", heading, block(thought, "said"), false, gone ? "dropped" : "");
  }

  function turnFacts(completion, timing) {
    const facts = [];
    const [prompt, sampled] = [number(completion.prompt_length), number(completion.sampled_length)];
    if (prompt || sampled) facts.push(`prompt ${grouped(prompt ?? 0)}, sampled ${counted(sampled ?? 0, "token")}`);
    for (const [name, value] of Object.entries(timing)) {
      if (name.endsWith("_seconds") && number(value)) facts.push(`${spoken(name.slice(0, -8))} ${seconds(value)}`);
    }
    return facts.join(" · ");
  }

  function messageView(state, index, results) {
    const message = asRow(state.messages[index]);
    const role = text(message.role) || "?";
    const content = contentOf(message);
    const calls = asList(message.tool_calls);
    const parts = [];
    const completion = role === "assistant" ? asRow(state.completions[state.turn]) : {};
    const facts = role === "assistant" ? turnFacts(completion, asRow(state.timings[state.turn])) : "";
    if (role === "assistant") state.turn += 1;
    const thought = text(message.reasoning_content);
    if (thought.trim()) parts.push(thinkingView(thought, state.droppedAt[index]));
    if (role === "tool") parts.push(resultView(message));
    else if (content.trim()) parts.push(opening(role, content));
    if (calls.length > 1) parts.push(make("p", { class: "quiet" }, `${calls.length} calls in parallel`));
    if (calls.length) parts.push(make("div", { class: calls.length > 1 ? "calls several" : "calls" }, ...calls.map((call, place) => callView(call, results[place]))));
    if (!parts.length) parts.push(make("p", { class: "quiet" }, "An empty message."));
    const faults = asList(completion.faults);
    if (faults.length) parts.push(make("ul", { class: "faults", "aria-label": "faults" }, ...faults.map((fault) => make("li", {}, text(fault)))));
    const heading = make("header", {}, make("b", {}, role === "assistant" ? (state.turn > 0 ? `assistant, turn ${state.turn}` : "assistant") : role));
    if (completion.finish_reason === "length") heading.append(make("span", { class: "badge warn" }, "cut off at its token limit"));
    const gone = state.goneAt[index];
    if (gone) heading.append(make("span", { class: "badge warn" }, `out of the context from message ${gone.at_message} on`));
    heading.append(make("span", { class: "facts" }, facts, make("span", { class: "place", title: "place among the messages" }, `message ${index}`)));
    return make("section", { class: `message ${/^\w+$/.test(role) ? role : "other"}${gone ? " gone" : ""}`, "data-message": index }, heading, ...parts);
  }

  function opening(role, content) {
    if (role !== "system" && role !== "developer") return block(content, "said");
    const heading = [make("b", {}, "Instructions"), make("span", {}, counted(content.length, "character")), make("span", { class: "preview" }, preview(content))];
    return fold("instructions", heading, block(content, "said"), false);
  }

  /** The tool messages that answer the calls at `index`: by id among those that follow at once, else by order. */
  function answersTo(messages, index) {
    const calls = asList(asRow(messages[index]).tool_calls);
    const following = [];
    for (let at = index + 1; calls.length && at < messages.length && asRow(messages[at]).role === "tool" && following.length < calls.length; at += 1) following.push(asRow(messages[at]));
    const left = [...following];
    const results = calls.map((call) => {
      const place = left.findIndex((one) => asRow(call).id && one.tool_call_id === asRow(call).id);
      return place >= 0 ? left.splice(place, 1)[0] : undefined;
    });
    return { results: results.map((result) => result ?? left.shift()), count: following.length };
  }

  function droppedDivider(state, index) {
    const turns = Object.keys(state.droppedAt).filter((key) => state.droppedAt[key] === index);
    if (!turns.length) return null;
    const characters = turns.reduce((sum, key) => sum + text(asRow(state.messages[key]).reasoning_content).length, 0);
    const what = `${counted(turns.length, "turn")} above (${counted(characters, "character")})`;
    return make("div", { class: "divider dropped", role: "note" }, make("b", {}, "Reasoning dropped:"), ` the thinking of ${what} is not in the context from this ${text(asRow(state.messages[index]).role)} message on.`);
  }

  function contextDivider(event) {
    const ranges = rangesOf(event).map(([start, stop]) => (stop - start === 1 ? `${start}` : `${start}–${stop - 1}`));
    const sizes = [event.tokens_before, event.tokens_after].map((size) => (number(size) === null ? "?" : grouped(size)));
    const parts = [make("b", {}, `Context made smaller: ${text(event.strategy)}`), ` ${sizes[0]} → ${sizes[1]} tokens`];
    if (ranges.length) parts.push(`; messages ${ranges.slice(0, 12).join(", ")}${ranges.length > 12 ? "…" : ""} are not in the context from here on`);
    const notes = asRow(asRow(event.summary).message);
    const summary = contentOf(notes) || text(notes.reasoning_content);
    if (summary) parts.push(fold("summary", [make("b", {}, "Its summary"), make("span", { class: "preview" }, preview(summary))], block(summary, "said"), false));
    return make("div", { class: "divider context", role: "note" }, ...parts);
  }

  /** The half-open ranges of messages that a context event took away. */
  const rangesOf = (event) => asList(event.dropped_messages).filter((range) => Array.isArray(range) && range.every(Number.isInteger));

  function conversation(held) {
    const { episode } = held;
    const state = { messages: asList(episode.messages), completions: asList(episode.completions), timings: asList(episode.timings), droppedAt: held.dropped_at, goneAt: {}, turn: 0 };
    // An environment may open with words of the assistant: they come before the policy's turns, and are none.
    const spoken = state.messages.filter((message) => asRow(message).role === "assistant").length;
    if (state.completions.length) state.turn = Math.min(0, state.completions.length - spoken);
    const events = asList(episode.context_events).map(asRow);
    for (const event of events) {
      for (const [start, stop] of rangesOf(event)) for (let at = start; at < Math.min(stop, state.messages.length); at += 1) state.goneAt[at] ??= event;
    }
    const parts = [];
    for (let index = 0; index < state.messages.length; ) {
      while (events.length && !(events[0].at_message > index)) parts.push(contextDivider(events.shift()));
      parts.push(droppedDivider(state, index));
      const { results, count } = answersTo(state.messages, index);
      parts.push(messageView(state, index, results));
      index += 1 + count;
    }
    parts.push(...events.map(contextDivider));
    if (held.cut) parts.push(make("p", { class: "quiet" }, `${counted(held.cut, "more message")} in ${held.file}, line ${held.line}.`));
    return parts.filter(Boolean);
  }

  function rewardsView(rewards) {
    const chips = Object.entries(asRow(rewards)).map(([name, value]) => {
      const scored = number(value);
      return make("li", { class: scored === null ? "unscored" : "" }, make("span", {}, spoken(name)), make("b", {}, scored === null ? "not scored" : grouped(scored)));
    });
    return make("ul", { class: "rewards", "aria-label": "reward parts" }, ...(chips.length ? chips : [make("li", { class: "unscored" }, "no rewards")]));
  }

  function factsView(held) {
    const { episode } = held;
    const task = asRow(episode.task);
    const completions = asList(episode.completions).map(asRow);
    const longest = Math.max(0, ...completions.map((one) => number(one.prompt_length) ?? 0));
    const sampled = completions.reduce((sum, one) => sum + (number(one.sampled_length) ?? 0), 0);
    const timed = (name) => asList(episode.timings).reduce((sum, one) => sum + (number(asRow(one)[name]) ?? 0), 0);
    const split = asList(episode.timings).length ? ` (policy ${seconds(timed("policy_seconds"))}, tools ${seconds(timed("tools_seconds"))})` : "";
    const facts = [];
    for (const name of ["domain", "family", "environment", "difficulty", "split"]) if (task[name] !== undefined) facts.push([name, spoken(text(task[name]))]);
    facts.push(["mode", task.thinking === false ? "non-thinking" : "thinking"]);
    facts.push(["turns", grouped(asList(episode.messages).filter((one) => asRow(one).role === "assistant").length)]);
    if (sampled || longest) facts.push(["tokens", `${grouped(sampled)} sampled, longest prompt ${grouped(longest)}`]);
    if (number(episode.seconds) !== null) facts.push(["time", seconds(episode.seconds) + split]);
    for (const [name, value] of Object.entries(episode)) {
      if (!["status", "seconds", "error"].includes(name) && value !== "" && ["string", "number", "boolean"].includes(typeof value)) facts.push([spoken(name), text(value)]);
    }
    facts.push(["from", `${held.file}, line ${held.line}`]);
    return make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  function asideView(episode) {
    const tools = asList(episode.tools).map((tool) => asRow(asRow(tool).function));
    const parts = [];
    if (tools.length) {
      const described = tools.map((tool) => make("div", {}, make("dt", {}, make("code", {}, tool.name ?? "?")), make("dd", {}, text(tool.description))));
      parts.push(fold("tools", [make("b", {}, counted(tools.length, "tool")), make("span", { class: "preview" }, tools.map((tool) => tool.name).join(", "))], make("dl", { class: "offered" }, ...described), false));
    }
    const known = asRow(asRow(episode.task).metadata);
    if (Object.keys(known).length) parts.push(fold("known", [make("b", {}, "What the verifier knows")], block(text(known), "said"), false));
    return parts;
  }

  /** The whole episode as an article; `held` is what the page holds of it. */
  function article(held, verdict) {
    const { episode } = held;
    const status = text(episode.status) || "no status";
    const heading = make("h3", { id: "episode-title" }, make("span", { class: "place" }, `#${held.number}`), " ", text(asRow(episode.task).id) || "unnamed task");
    const badges = make("p", { class: "badges" }, make("span", { class: `badge ${verdict.replace(" ", "-")}` }, verdict), make("span", { class: `badge ${statusKind(status)}` }, spoken(status)));
    const error = text(episode.error);
    return make(
      "article", { "aria-labelledby": "episode-title" }, make("header", { class: "top" }, heading, badges), rewardsView(episode.rewards), factsView(held),
      error && make("div", { class: "failure", role: "note" }, make("b", {}, "What failed"), block(error, "said")),
      ...asideView(episode), ...conversation(held),
    );
  }

  const statusKind = (status) => (status === "finished" ? "plain" : /error/.test(status) ? "failed" : "warn");

  return { article, make, visible, asList, spoken, grouped, counted, exactly, statusKind };
})();
