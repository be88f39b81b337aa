// One side of the comparison: its answer, its text, its tokens with what the probe read at each.

class Side {
  constructor(name, title) {
    this.badge = make("span", { className: "badge" });
    this.problem = make("p", { className: "problem", role: "alert", hidden: true });
    this.answer = make("p", { className: "answer" });
    this.chances = make("dl", { className: "chances" });
    this.text = make("p", { className: "text" });
    this.tokens = make("div", { className: "tokens", role: "group", "aria-label": `Tokens ${title.toLowerCase()}` });
    this.readout = make("p", { className: "readout" });
    this.words = make("div", { className: "words" });
    this.body = make("div", { hidden: true }, this.answer, this.chances, make("h4", {}, "Text"), this.text, make("h4", {}, "Tokens"), this.tokens,
      this.readout, this.words);
    this.root = make("section", { className: "side panel", id: `side-${name}`, "aria-label": title },
      make("h3", {}, `${title} `, this.badge), this.problem, this.body);
    this.added = walk(this.tokens, (button) => { this.readout.textContent = button.getAttribute("aria-label"); });
    this.clear();
  }

  clear() {
    this.mera = null;
    this.count = 0;
    for (const part of [this.answer, this.chances, this.text, this.tokens, this.words]) part.replaceChildren();
    tell(this.problem, "");
    this.body.hidden = true;
    this.readout.textContent = "Point at a token, or walk along them with the arrow keys.";
    this.state("idle", "not asked");
  }

  /** The badge, and whether tokens still come. */
  state(kind, words) {
    this.badge.dataset.kind = kind;
    this.badge.textContent = words;
    this.root.classList.toggle("running", kind === "running");
    this.root.setAttribute("aria-busy", String(kind === "running"));
  }

  begin() {
    this.clear();
    this.body.hidden = false;
    this.state("running", "running");
  }

  fail(problem) {
    this.body.hidden = this.count === 0;
    this.state("failed", problem.name === "AbortError" ? "stopped" : "failed");
    if (problem.name === "AbortError") return;
    tell(this.problem, problem.status === "stream" ? `The stream broke off: ${problem.message}.` : problemWords(problem));
  }

  /** One event; `truth`, where it is known, is the right label. */
  take(event, truth) {
    this.text.append(event.token.text);
    this.tokens.append(this.chip(event));
    if (event.mera) this.finish(event, truth);
  }

  chip({ token, step }) {
    const read = step?.predicted_error, moved = step?.steered;
    const told = [`Token ${this.count + 1}, “${visible(token)}”`];
    if (read) told.push(`predicted error ${short(read.before)} before, ${short(read.after)} after${moved ? ", moved" : ", not moved"}`);
    told.push(`chosen with probability ${percent(Math.exp(token.logprob))}`);
    const cell = (error, name) => make("span", { className: "error", data: { error: errorStep(error), when: name } }, error.toFixed(2));
    const button = make("button", { type: "button", className: "token", data: { row: 0, column: this.count }, "aria-label": told.join("; ") },
      make("span", { className: token.special ? "piece special" : "piece" }, visible(token), moved ? make("span", { className: "mark" }, " ▲") : null),
      read ? cell(read.before, "before") : null,
      read ? cell(read.after, "after") : null);
    this.count += 1;
    this.added(button);
    return button;
  }

  finish({ mera, details }, truth) {
    this.mera = mera;
    this.state(mera.decision, DECISIONS[mera.decision]);
    const label = mera.answer?.label;
    if (mera.answer) {
      const verdict = truth && label ? (label === truth ? " right" : " wrong") : "";
      this.answer.append("Answer: ", make("b", {}, label ?? "none of the labels"), verdict && make("span", { className: "verdict", data: { right: label === truth } }, verdict));
      for (const [name, chance] of Object.entries(mera.answer.probabilities)) this.chances.append(...this.chance(name, chance, truth));
    }
    const decided = mera.decision === "off" && mera.task === null ? "No task was given, so no probe was read." : decisionWords(mera);
    this.words.append(make("p", {}, make("b", {}, `${DECISIONS[mera.decision]}. `), decided));
    if (mera.task !== null) this.words.append(make("p", {}, errorWords(mera.predicted_error)));
    if (mera.task !== null && mera.method !== "none") this.words.append(make("p", {}, guaranteeWords(mera.guarantee)));
    this.words.append(make("p", { className: "quiet" }, endWords(details)));
  }

  chance(name, chance, truth) {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * chance}%`;
    return [
      make("dt", {}, name, truth === name ? make("span", { className: "quiet" }, " (true)") : null),
      make("dd", {}, make("span", { className: "track", "aria-hidden": "true" }, bar), make("span", { className: "number" }, percent(chance))),
    ];
  }

  /** The outcome in a few words, for the line that is read aloud. */
  summary() {
    if (!this.mera) return this.badge.textContent;
    const label = this.mera.answer?.label;
    const by = this.mera.answer?.by === "label_probe" ? "a label probe; the model: " : "";
    const chance = label ? `${label} (${by}${percent(this.mera.answer.probabilities[label])})` : "no label";
    return this.mera.answer ? chance : DECISIONS[this.mera.decision].toLowerCase();
  }
}
