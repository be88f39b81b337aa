// The store: each artifact, what its certificate promises, and the candidates it was chosen from.

const FIRST = 8; // candidates that are shown at once

async function showProbes() {
  const list = $("probes-list");
  try {
    const { probes } = await askJson("probes");
    const rank = (probe) => (probe.status === "loaded" ? (probe.certified ? 0 : 1) : 2);
    probes.sort((one, other) => rank(one) - rank(other));
    list.replaceChildren(...probes.map(probeEntry));
    if (!probes.length) list.append(make("p", { className: "quiet" }, "The store is empty. “mera run” fits, tests and publishes a probe."));
  } catch (problem) {
    list.replaceChildren(make("p", { className: "problem" }, problemWords(problem)));
  }
}

function probeEntry(probe) {
  const loaded = probe.status === "loaded";
  const [kind, words] = !loaded ? ["failed", "rejected"] : probe.certified ? ["steered", "certified"] : ["abstained", "not certified"];
  const more = make("div", { className: "more" });
  const entry = make("details", { className: "probe" },
    make("summary", {}, make("b", {}, probe.task ?? "unreadable"), " ", make("span", { className: "badge", data: { kind } }, words), " ",
      make("code", {}, probe.digest?.slice(0, 12) ?? "no digest")),
    make("p", {}, loaded ? certificateWords(probe) : `Not used: ${probe.reason}`),
    loaded ? more : null);
  entry.addEventListener("toggle", () => { if (entry.open && loaded && !more.childElementCount) showCandidates(probe, more); });
  return entry;
}

function certificateWords(probe) {
  if (probe.n === null) return "No candidate was tested, so the server leaves the model as it is.";
  const tested = `${TESTS[probe.test] ?? probe.test} on ${probe.n} calibration items`;
  const p = probe.p_value < 0.001 ? "p under 0.001" : `p = ${short(probe.p_value)}`;
  if (!probe.certified) return `Of ${probe.candidates} candidates the best did not pass ${tested} (${p}). The server leaves the model as it is.`;
  const elsewhere = form.tasks.some((task) => task.probe === probe.digest && !task.certified);
  return `Of ${probe.candidates} candidates the chosen one passed ${tested} (${p}): ${promise(probe)}.` +
    (elsewhere ? " That was under another dtype or attention than this server runs: it is served without its guarantee." : "");
}

async function showCandidates(probe, place) {
  place.replaceChildren(make("p", { className: "quiet" }, "Asking the server …"));
  try {
    const { calibration, manifest } = await askJson(`probes/${probe.digest}`);
    const scores = manifest.probe.scores?.find((one) => one.layer === probe.report_layer);
    place.replaceChildren(
      make("p", { className: "quiet" }, `${probe.family} probes at ${probe.hook_point}, layers ${probe.layers.join(", ")}; reported from layer ${probe.report_layer}` +
        (scores ? `, where it reads the logit of the error to ${scores.rmse.toFixed(2)} (a constant guess: ${scores.dummy_rmse.toFixed(2)})` : "") +
        `. α: ${alphaShort(probe.alpha)}; positions: ${[].concat(probe.positions).join(", ")}.`),
      ...candidateTable(probe, calibration));
  } catch (problem) {
    place.replaceChildren(make("p", { className: "problem" }, problemWords(problem)));
  }
}

function candidateTable(probe, calibration) {
  const tested = new Set(calibration.tested.map((one) => one.key));
  const ranked = [...calibration.candidates].sort((one, other) => other.gain - one.gain || tested.has(other.key) - tested.has(one.key));
  const allowed = probe.certified && pointsAllowed(probe);
  const gain = (value) => (allowed ? points(value) : value > 0 ? "better" : value < 0 ? "worse" : "the same");
  const row = (one) => make("tr", { className: one.key === calibration.chosen ? "chosen" : "" },
    make("th", { scope: "row" }, one.hook_point ?? "–", make("span", { className: "quiet" }, ` ${one.direction ?? ""} ${one.method && one.method !== "mera" ? one.method : ""}`)),
    make("td", {}, one.alpha === null ? "–" : alphaShort(one.alpha)),
    make("td", {}, gain(one.gain)),
    make("td", {}, one.key === calibration.chosen ? "chosen, tested" : tested.has(one.key) ? "tested" : ""));
  const body = make("tbody", {}, ...ranked.slice(0, FIRST).map(row));
  const head = ["Candidate", "α", "against not steering", ""].map((name) => make("th", { scope: "col" }, name));
  const parts = [
    make("p", {}, `The candidates, by what they did on training items held back for ordering them${allowed ? "" : " (in words only: the bound does not allow points)"}.`),
    make("div", { className: "scroll", role: "region", "aria-label": `Candidates of ${probe.task}`, tabIndex: 0 },
      make("table", {}, make("thead", {}, make("tr", {}, ...head)), body)),
  ];
  if (ranked.length > FIRST) {
    const all = make("button", { type: "button" }, `Show all ${ranked.length}`);
    all.addEventListener("click", () => { body.append(...ranked.slice(FIRST).map(row)); body.rows[FIRST].tabIndex = -1; body.rows[FIRST].focus(); all.remove(); });
    parts.push(all);
  }
  return parts;
}
