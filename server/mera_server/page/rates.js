// What the server decides, from /metrics, every few seconds; at rest while nobody looks.

const EVERY = 3000, WINDOW = 60000;
const rates = { samples: [], paused: false, timer: null, turn: 0 };

/** The sums of the plain text format that this page shows: name, or name and decision -> value. */
function readMetrics(text) {
  const sums = {};
  for (const [, name, labels, value] of text.matchAll(/^(mera_\w+)(?:\{(.*)\})? (\S+)$/gm)) {
    const decision = name === "mera_decisions_total" ? `:${/decision="(\w+)"/.exec(labels)[1]}` : "";
    sums[name + decision] = (sums[name + decision] ?? 0) + Number(value);
  }
  return sums;
}

async function lookAtRates() {
  clearTimeout(rates.timer);
  const turn = ++rates.turn;
  if (rates.paused || document.hidden) return;
  try {
    const sums = readMetrics(await (await ask("metrics")).text());
    if (turn !== rates.turn) return; // asked again meanwhile: that one goes on
    const total = (sample) => Object.keys(DECISIONS).reduce((sum, name) => sum + (sample[`mera_decisions_total:${name}`] ?? 0), 0);
    const now = performance.now();
    if (rates.samples.length && total(sums) < total(rates.samples.at(-1).sums)) rates.samples = []; // the server began anew
    rates.samples = [...rates.samples.filter((one) => now - one.at <= WINDOW + EVERY), { at: now, sums }];
    drawRates(sums, total(sums));
  } catch (problem) {
    if (turn !== rates.turn) return;
    $("load").textContent = problemWords(problem);
  }
  rates.timer = setTimeout(lookAtRates, EVERY);
}

function drawRates(sums, all) {
  const first = rates.samples[0];
  const seconds = Math.round((performance.now() - first.at) / 1000);
  $("load").textContent = `${sums.mera_requests_running ?? 0} running, ${sums.mera_requests_waiting ?? 0} waiting. ` +
    (seconds < 55 ? `Watched for ${seconds} s so far.` : "Looked at every 3 s.");
  const rows = Object.entries(DECISIONS).map(([name, words]) => {
    const count = sums[`mera_decisions_total:${name}`] ?? 0;
    const lately = count - (first.sums[`mera_decisions_total:${name}`] ?? 0);
    const bar = make("span", { className: "bar", data: { kind: name } });
    bar.style.width = `${all ? (100 * count) / all : 0}%`;
    return make("tr", { data: { decision: name } }, make("th", { scope: "row" }, words), make("td", {}, String(lately)), make("td", {}, String(count)),
      make("td", {}, make("span", { className: "track", "aria-hidden": "true" }, bar), make("span", { className: "number" }, all ? percent(count / all) : "–")));
  });
  $("rates-table").tBodies[0].replaceChildren(...rows);
}

function watchRates() {
  $("rates-pause").addEventListener("click", () => {
    rates.paused = !rates.paused;
    $("rates-pause").setAttribute("aria-pressed", String(rates.paused));
    lookAtRates();
  });
  document.addEventListener("visibilitychange", lookAtRates);
  lookAtRates();
}
