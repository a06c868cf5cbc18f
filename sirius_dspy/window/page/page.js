// Asks for the state each second and shows it. What did not change is left alone, so that nothing jumps or loses focus.
"use strict";

const REFRESH_MS = 1000;
const ANSWER_MS = 5000;
const SILENT_S = 30;

const STATES = {
  running: ["Running", "good"],
  pausing: ["Pausing", "wait"],
  paused: ["Paused", "wait"],
  finished: ["Finished", "good"],
  failed: ["Failed", "bad"],
  interrupted: ["Interrupted: call the same compile again to resume", "bad"],
  gone: ["Its process has ended without a word: call the same compile again to resume", "bad"],
  unknown: ["Not finished; whether it is at work is not known", "wait"],
};
const VERDICTS = ["leaked", "diverged", "unparsed", "unchanged", "failed", "unconfirmed", "repaired"];
const NAMES = { calls: "LM calls", tokens: "tokens", usd: "US dollars", seconds: "time" };

const byId = (id) => document.getElementById(id);
const shown = new Map();
let last = null;
let lastAnswer = Date.now();

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function showText(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

function showIfNew(id, data, render) {
  const key = JSON.stringify(data);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  const place = byId(id);
  const left = place.scrollLeft;
  place.replaceChildren(...render(data));
  place.scrollLeft = left;
}

// Numbers

const count = (value) => value.toLocaleString("en-US");

function duration(seconds) {
  const all = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

function amount(name, value) {
  if (value === null) return "unknown";
  if (name === "seconds") return duration(value);
  if (name === "usd") return value.toFixed(value >= 1 || value === 0 ? 2 : 4);
  return count(value);
}

const score = (value, inPercent) => (inPercent ? `${(100 * value).toFixed(1)} %` : value.toFixed(4));

// Parts

function describe(view) {
  let text = STATES[view.state][0];
  if (view.state === "pausing") text += `: ${count(view.in_flight)} in flight`;
  if (view.wish === "pause" && view.state === "running") text += ", pauses in a moment";
  if (view.wish === "stop") text += ", stops after this stage";
  if (view.silent_s !== null && view.silent_s >= SILENT_S) text += `, no sign of life for ${duration(view.silent_s)}`;
  if (view.reason) text += ` (${view.reason})`;
  return text;
}

function renderStages(stages) {
  const rows = [];
  for (const stage of stages) {
    if (!rows.length || rows.at(-1).iteration !== stage.iteration) {
      const list = make("ol", { class: "stages" });
      const row = make("li", {}, make("span", {}, stage.iteration ? `Iteration ${stage.iteration}` : "At the start"), list);
      rows.push({ iteration: stage.iteration, row, list });
    }
    rows.at(-1).list.append(renderStage(stage));
  }
  return rows.map((item) => item.row);
}

function renderStage(stage) {
  const item = make("li", { class: `stage ${stage.status}` }, stage.stage);
  if (stage.status === "done") item.append(make("small", {}, (stage.seconds ?? 0) < 0.5 ? "done" : `done, ${duration(stage.seconds)}`));
  if (stage.status === "open") item.append(make("small", {}, "to come"));
  if (stage.status === "now") {
    item.setAttribute("aria-current", "step");
    item.append(make("small", {}, stage.total ? `${count(stage.done)} of ${count(stage.total)}` : "now"));
    const value = stage.total ? { max: stage.total, value: stage.done } : { max: 1, value: 0 };
    item.append(make("progress", { ...value, "aria-label": `Progress of ${stage.stage}` }));
  }
  return item;
}

function renderScores([scores, inPercent]) {
  if (!scores.length) return [make("p", { class: "empty" }, "Not measured yet.")];
  const values = scores.flatMap((item) => [item.low ?? item.score, item.high ?? item.score]);
  const from = inPercent ? 0 : Math.min(...values);
  const width = (inPercent ? 1 : Math.max(...values)) - from || 1;
  const place = (value) => `${(100 * (value - from)) / width}%`;
  return scores.map((item) => {
    const track = make("span", { class: "track", "aria-hidden": "true" });
    if (item.low !== null) {
      const bar = make("i");
      bar.style.left = place(item.low);
      bar.style.width = `${(100 * (item.high - item.low)) / width}%`;
      track.append(bar);
    }
    const dot = make("b");
    dot.style.left = place(item.score);
    track.append(dot);
    const interval = item.low === null ? "" : make("small", {}, `${score(item.low, inPercent)} to ${score(item.high, inPercent)}`);
    const name = item.iteration ? `iteration ${item.iteration}` : "at the start";
    return make(
      "div",
      { class: item.is_best ? "score best" : "score" },
      make("span", {}, name, make("small", {}, item.is_best ? `best, of ${count(item.num_val)}` : `of ${count(item.num_val)}`)),
      track,
      make("span", {}, score(item.score, inPercent), interval),
    );
  });
}

function renderSpending(spending) {
  return spending.map((item) => {
    const value = make("dd", {}, amount(item.name, item.spent));
    if (item.limit !== null) {
      value.append(make("small", {}, ` of ${amount(item.name, item.limit)}`));
      const meter = { max: item.limit, value: Math.min(item.spent ?? 0, item.limit), "aria-label": `${NAMES[item.name]} of the budget` };
      value.append(make("progress", meter));
    }
    return make("div", {}, make("dt", {}, NAMES[item.name]), value);
  });
}

function table(caption, header, rows, empty) {
  if (!rows.length) return [make("p", { class: "empty" }, empty)];
  const head = header.map(([name, isNumber]) => make("th", { scope: "col", class: isNumber ? "number" : "" }, name));
  const body = rows.map((cells) =>
    make("tr", {}, ...cells.map((cell, index) => {
      if (index === 0) return make("th", { scope: "row", "data-label": header[0][0] }, String(cell));
      return make("td", { class: header[index][1] ? "number" : "", "data-label": header[index][0] }, String(cell));
    })),
  );
  return [make("table", { "aria-label": caption }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body))];
}

function renderRuns(runs) {
  const header = [["iteration", false], ["origin", false], ["runs", true], ["succeeded", true], ["share", true]];
  const rows = runs.map((item) => [
    item.iteration, item.origin, count(item.runs), count(item.succeeded), `${((100 * item.succeeded) / item.runs).toFixed(1)} %`,
  ]);
  return table("Runs", header, rows, "None yet.");
}

function renderRepairs(repairs) {
  const header = [["iteration", false], ["rung", false], ["failed runs", true], ["attempts", true], ...VERDICTS.map((name) => [name, true])];
  const rows = repairs.map((item) => [
    item.iteration, item.rung || "-", count(item.runs), count(item.attempts), ...VERDICTS.map((name) => count(item[name])),
  ]);
  return table("Repairs", header, rows, "None yet.");
}

function renderAgents(agents) {
  const header = [["iteration", false], ["agent", false], ["rows", true], ["loss", true], ["kept", true]];
  const loss = (value) => (value === null ? "-" : value.toFixed(3));
  const rows = agents.map((item) => [
    item.iteration, item.agent, count(item.rows), item.losses ? item.losses.map(loss).join(" to ") : "-",
    item.is_kept === null ? "-" : item.is_kept ? "yes" : "no",
  ]);
  return table("Training rows", header, rows, "None yet.");
}

function fields(values, kind) {
  return Object.entries(values).map(([name, value]) =>
    make("div", { class: kind }, make("dt", {}, name), make("dd", {}, value)),
  );
}

function renderStep(step) {
  const item = make("li", { class: step.is_edited ? "edited" : "" });
  item.append(make("h3", {}, step.is_edited ? `${step.predictor} (edited by the repair)` : step.predictor));
  item.append(make("dl", {}, ...fields(step.inputs, "in"), ...fields(step.outputs, "out")));
  if (step.failure) item.append(make("p", { class: "bad" }, step.failure));
  return item;
}

function renderTrajectories(trajectories) {
  if (!trajectories.length) return [make("p", { class: "empty" }, "None yet.")];
  return trajectories.map((item) =>
    make(
      "article",
      { class: item.succeeded ? "good" : "", "aria-label": `${item.origin} ${item.id}` },
      make("h3", {}, `${item.origin}, iteration ${item.iteration}`),
      make("p", { class: "outcome" }, `${item.succeeded ? "succeeded" : "failed"}, reward ${item.reward}`),
      make("p", { class: "soft" }, `${item.id}, ${item.seconds.toFixed(1)} s`),
      make("ol", { class: "steps" }, ...item.steps.map(renderStep)),
      make("p", { class: item.failure ? "prediction bad" : "prediction" }, item.failure || item.prediction),
    ),
  );
}

// The whole

function show(view) {
  last = view;
  const text = describe(view);
  showText("state", text);
  byId("state").className = `state ${STATES[view.state][1]}`;
  document.title = `${STATES[view.state][0]} · ${view.program}`;
  showText("program", view.program || "Compile");
  showText("run-dir", view.run_dir);
  showText("note", view.note);
  showIfNew("problems", view.problems, (problems) => problems.map((problem) => make("li", {}, problem)));
  byId("problems").hidden = !view.problems.length;
  showIfNew("stages", view.stages, renderStages);
  showIfNew("scores", [view.scores, view.in_percent], renderScores);
  showIfNew("spending", view.spending, renderSpending);
  showIfNew("runs", view.runs, renderRuns);
  showIfNew("repairs", view.repairs, renderRepairs);
  showIfNew("agents", view.agents, renderAgents);
  if (byId("follow").checked) showIfNew("trajectories", view.trajectories, renderTrajectories);
  const isAtWork = ["running", "pausing", "paused"].includes(view.state);
  allow("pause", isAtWork && view.wish !== "pause");
  allow("go-on", isAtWork && view.wish !== null);
  allow("stop", isAtWork && view.wish !== "stop");
}

// `aria-disabled`, since a button that is `disabled` loses the focus of the keyboard.
function allow(id, isAllowed) {
  byId(id).setAttribute("aria-disabled", String(!isAllowed));
}

function showConnection(problem) {
  document.body.classList.toggle("stale", Boolean(problem));
  showText("connection", problem);
}

async function request(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS), ...options });
  const body = await response.json();
  if (!response.ok) throw Object.assign(new Error(body.error), { isAnswer: true });
  return body;
}

async function refresh() {
  try {
    show(await request("/state.json"));
    lastAnswer = Date.now();
    showConnection("");
  } catch (error) {
    const since = new Date(lastAnswer).toLocaleTimeString("en-GB");
    showConnection(error.isAnswer ? error.message : `No connection since ${since}. This is what was known then.`);
  }
  setTimeout(refresh, REFRESH_MS);
}

async function ask(event) {
  const button = event.currentTarget;
  if (button.getAttribute("aria-disabled") === "true") return;
  const token = document.querySelector('meta[name="token"]').content;
  try {
    show(await request(`/ask/${button.dataset.wish}`, { method: "POST", headers: { "X-Sirius-Token": token } }));
  } catch (error) {
    showConnection(error.isAnswer ? error.message : "No connection. Nothing was asked of the compile.");
  }
}

for (const button of document.querySelectorAll("button[data-wish]")) button.addEventListener("click", ask);
byId("follow").addEventListener("change", () => last && show(last));
refresh();
