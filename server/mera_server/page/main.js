// The page: start, run, stop.

const sides = { plain: new Side("plain", "Without steering"), steered: new Side("steered", "With steering") };
let running = null;

/** Asks again until the model is loaded; then what the server holds. */
async function start() {
  try {
    form.fill(await askJson("tasks/forms"));
  } catch (problem) {
    tell($("notice"), problemWords(problem));
    if (problem.status === 503 || problem.status === 0) setTimeout(start, 1000 * (Number(problem.retryAfter) || 3));
    return;
  }
  tell($("notice"), "");
  $("run").disabled = false;
  showModel();
  showProbes();
  lookAtRates();
}

async function showModel() {
  try {
    const { model, version } = await askJson("info");
    $("model").textContent = `${model.id}: ${model.architecture}, ${model.layers} layers of ${model.width}, ${model.dtype} on ${model.device}. Version ${version}.`;
  } catch (problem) {
    $("model").textContent = problemWords(problem);
  }
}

async function run() {
  let bodies;
  try {
    bodies = { plain: form.body(false), steered: form.body(true) };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return tell($("refusal"), error.message);
  }
  tell($("refusal"), "");
  running?.abort();
  const controller = running = new AbortController();
  const seed = bodies.steered.parameters.seed ?? Math.floor(Math.random() * 2 ** 32); // both sides draw alike
  bodies.plain.parameters.seed = bodies.steered.parameters.seed = seed;
  const wanted = form.task === null ? ["plain"] : ["plain", "steered"];
  sides.steered.root.hidden = form.task === null;
  map.clear(form.task?.layers ?? []);
  $("stop").disabled = false;
  $("outcome").textContent = "Running …";
  const truth = form.truth;
  await Promise.all(wanted.map((name) => stream(name, bodies[name], truth, controller.signal)));
  if (controller !== running) return;
  running = null;
  lookAtRates();
  $("stop").disabled = true;
  const verdict = sides.steered.mera && form.task !== null ? ` Decision: ${DECISIONS[sides.steered.mera.decision].toLowerCase()}.` : "";
  $("outcome").textContent = wanted.map((name) => `${name === "plain" ? "Without steering" : "With steering"}: ${sides[name].summary()}.`).join(" ") + verdict;
}

async function stream(name, body, truth, signal) {
  const side = sides[name];
  side.begin();
  try {
    for await (const event of events(body, signal)) {
      if (signal.aborted) return;
      side.take(event, truth);
      if (name === "steered") map.take(event);
    }
  } catch (problem) {
    if (running?.signal === signal) side.fail(problem);
    if (problem.name !== "AbortError" && !(problem instanceof Problem)) throw problem;
  }
}

function listen() {
  form.listen();
  $("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("form").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); } });
  $("stop").addEventListener("click", () => running?.abort());
  $("view").addEventListener("change", (event) => map.show(event.target.value));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set($("key").value.trim());
    $("key").value = "";
    start();
  });
  $("key-forget").addEventListener("click", () => { key.forget(); $("key").focus(); });
}

$("sides").append(sides.plain.root, sides.steered.root);
$("key-form").hidden = !key.get();
$("run").disabled = true;
legends();
listen();
start();
watchRates();
