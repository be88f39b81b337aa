// Tokens × layers: how far each cell was moved, and the predicted error before and after.

const COLUMNS = 128; // more tokens are not drawn: a map of thousands of cells is slow, and nobody reads it

const map = {
  columns: [],
  view: "shift",
  active: [],

  clear(active) {
    this.columns = [];
    this.active = active;
    $("map").replaceChildren();
    $("map").hidden = $("cell").hidden = true;
    tell($("moved-empty"), "Run a prompt to fill this map.");
  },

  /** Adds the column of one token of the steered side. */
  take({ token, step }) {
    const trace = step?.trace;
    if (!trace) {
      tell($("moved-empty"), "Nothing was read: there is no probe to read by.");
      return;
    }
    if (!this.columns.length) this.begin(trace.shift.length);
    const column = this.columns.length;
    tell($("moved-empty"), column < COLUMNS ? "" : `Only the first ${COLUMNS} tokens are drawn.`);
    if (column >= COLUMNS) return;
    this.columns.push({ token, trace });
    this.head.append(make("th", { scope: "col" }, visible(token)));
    this.rows.forEach((row, layer) => {
      const button = make("button", { type: "button", className: "cell", data: { row: layer, column } });
      this.added(button);
      this.paint(button);
      row.append(make("td", {}, button));
    });
  },

  begin(layers) {
    this.head = make("tr", {}, make("th", { scope: "col" }, "Layer"));
    this.rows = Array.from({ length: layers }, (_, layer) => make("tr", {}, make("th", { scope: "row" }, String(layer))));
    const table = make("table", { "aria-label": "What was moved: tokens across, layers down" }, make("thead", {}, this.head), make("tbody", {}, ...this.rows));
    this.added = walk(table, (button) => { $("cell").textContent = button.getAttribute("aria-label"); });
    $("map").append(table);
    $("map").hidden = $("cell").hidden = false;
    $("cell").textContent = "Point at a cell, or walk through them with the arrow keys.";
  },

  paint(button) {
    const layer = Number(button.dataset.row), column = Number(button.dataset.column);
    const { token, trace } = this.columns[column];
    const place = `Layer ${layer}, token ${column + 1} “${visible(token)}”`;
    for (const name of ["error", "shift", "idle"]) delete button.dataset[name];
    if (!this.active.includes(layer)) {
      button.dataset.idle = "";
      button.textContent = "–";
      button.setAttribute("aria-label", `${place}: no probe reads this layer`);
      return;
    }
    const shift = trace.shift[layer], value = trace[this.view][layer];
    if (this.view === "shift") button.dataset.shift = shiftStep(shift);
    else button.dataset.error = errorStep(value);
    button.textContent = this.view === "shift" && value === 0 ? "·" : value.toFixed(2);
    const moved = shift === 0 ? "not moved" : `moved by ${short(shift)} of its length`;
    button.setAttribute("aria-label", `${place}: ${moved}; predicted error ${short(trace.before[layer])} before, ${short(trace.after[layer])} after`);
  },

  show(view) {
    this.view = view;
    $("map").querySelectorAll("button").forEach((button) => this.paint(button));
    for (const legend of document.querySelectorAll("#moved [data-views]")) legend.hidden = !legend.dataset.views.includes(view);
  },
};

/** The two legends: every step of a scale with where it ends. */
function legends() {
  for (const scale of document.querySelectorAll(".error-scale")) {
    for (let step = 0; step < 10; step++) scale.append(make("span", { data: { error: step } }, `.${step}`));
    scale.append(make("span", { className: "end" }, "1"));
  }
  for (let step = 0; step <= SHIFTS.length; step++) {
    const words = step === 0 ? "·" : step < SHIFTS.length ? `≤ ${SHIFTS[step]}` : `> ${SHIFTS.at(-1)}`;
    $("shift-scale").append(make("span", { data: { shift: step } }, words));
  }
}
